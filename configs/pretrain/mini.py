"""`mini`, the model that comes with jpeft: T5 1.1 of a size that two CPU cores pretrain in an evening.

  jpeft pretrain --config configs/pretrain/mini.py --config.data.path=CORPUS --workdir runs/mini

CORPUS is a directory of the files below (docs/mini.md says what is in them). For a model of your own, name your own
files and rates. Keys: `jpeft pretrain --help`, or `jpeft/pretrain/config.py`.
"""

from ml_collections import ConfigDict

from jpeft.pretrain.config import default_pretraining

# Share of the tokens. Old books are most of the corpus and least like what a user tunes on; news-like text is rare.
_TEXT = {
    "books": ("text_books-*.jsonl.xz", 0.20),
    "textbooks": ("text_textbooks.jsonl.xz", 0.10),
    "factbook": ("text_factbook.jsonl.xz", 0.05),
    "wikitext": ("text_wikitext.jsonl.xz", 0.07),
    "govblog": ("text_govblog.jsonl.xz", 0.10),
    "speeches": ("text_speeches_masc.jsonl.xz", 0.08),
    "dialogue": ("text_dialogue_sgd.jsonl.xz", 0.06),
    "meetings": ("text_meetings_qmsum.jsonl.xz", 0.03),
}
_PAIRS = {
    "dialogue_pairs": ("instr_dialogue_sgd.jsonl.xz", 0.10),
    "meeting_pairs": ("instr_meetings_qmsum.jsonl.xz", 0.01),
    "headline_pairs": ("instr_headline_summary.jsonl.xz", 0.02),
    "medical_pairs": ("instr_medquad.jsonl.xz", 0.02),
    "reasoning_pairs": ("instr_reasoning_cot.jsonl.xz", 0.04),
    "science_pairs": ("instr_science_qa.jsonl.xz", 0.03),
    "wordnet_pairs": ("instr_wordnet.jsonl.xz", 0.07),
    "sentiment_pairs": ("instr_sentiment.jsonl.xz", 0.02),
}


def get_config() -> ConfigDict:
    config = default_pretraining()
    config.update_from_flattened_dict(
        {
            "model.d_model": 192,
            "model.d_kv": 64,
            "model.num_heads": 3,
            "model.d_ff": 512,
            "model.num_layers": 4,
            "model.num_decoder_layers": 2,
            "data.input_length": 256,
            "data.target_length": 80,
            "train.batch_size": 16,
            "train.steps": 4000,
            "log.validate_every": 500,
        }
    )
    for kind, sources in (("text", _TEXT), ("pairs", _PAIRS)):
        for name, (files, rate) in sources.items():
            config.data.sources[name] = ConfigDict({"files": files, "kind": kind, "rate": rate})
    return config
