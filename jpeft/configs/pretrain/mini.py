"""Pretraining of `mini`, the model that ships with jpeft: a T5 1.1 that two CPU cores train in an evening.

  jpeft pretrain --config pretrain/mini --config.data.path=CORPUS --workdir runs/mini

CORPUS is a directory with the files named below, which docs/mini.md describes. To pretrain another model, write a
config with other files and shares. `jpeft pretrain --help` and `jpeft/pretrain/config.py` list the config keys.
"""

from ml_collections import ConfigDict

from jpeft.pretrain.config import SourceConfig, default_pretraining

# Each number is a share of the tokens. Books are most of the corpus but least like the tasks; news-like text is rare.
_TEXT = {
    "books": SourceConfig("text_books-*.jsonl.xz", "text", 0.20),
    "textbooks": SourceConfig("text_textbooks.jsonl.xz", "text", 0.10),
    "factbook": SourceConfig("text_factbook.jsonl.xz", "text", 0.05),
    "wikitext": SourceConfig("text_wikitext.jsonl.xz", "text", 0.07),
    "govblog": SourceConfig("text_govblog.jsonl.xz", "text", 0.10),
    "speeches": SourceConfig("text_speeches_masc.jsonl.xz", "text", 0.08),
    "dialogue": SourceConfig("text_dialogue_sgd.jsonl.xz", "text", 0.06),
    "meetings": SourceConfig("text_meetings_qmsum.jsonl.xz", "text", 0.03),
}
_PAIRS = {
    "dialogue_pairs": SourceConfig("instr_dialogue_sgd.jsonl.xz", "pairs", 0.10),
    "meeting_pairs": SourceConfig("instr_meetings_qmsum.jsonl.xz", "pairs", 0.01),
    "headline_pairs": SourceConfig("instr_headline_summary.jsonl.xz", "pairs", 0.02),
    "medical_pairs": SourceConfig("instr_medquad.jsonl.xz", "pairs", 0.02),
    "reasoning_pairs": SourceConfig("instr_reasoning_cot.jsonl.xz", "pairs", 0.04),
    "science_pairs": SourceConfig("instr_science_qa.jsonl.xz", "pairs", 0.03),
    "wordnet_pairs": SourceConfig("instr_wordnet.jsonl.xz", "pairs", 0.07),
    "sentiment_pairs": SourceConfig("instr_sentiment.jsonl.xz", "pairs", 0.02),
}


def get_config() -> ConfigDict:
    """The config of `mini`'s first stage: span corruption mixed with some pairs. `data.path` must be set."""
    config = default_pretraining({**_TEXT, **_PAIRS})
    config.update_from_flattened_dict(
        {
            "model.d_model": 192,
            "model.d_kv": 32,
            "model.num_heads": 6,
            "model.d_ff": 512,
            "model.num_layers": 3,
            "model.num_decoder_layers": 3,
            "data.input_length": 256,
            "data.target_length": 80,
            "train.batch_size": 16,
            "train.steps": 2000,
            "train.warmup_steps": 80,
            "train.learning_rate": 0.03,
            "log.validate_every": 300,
        }
    )
    return config
