"""Second pretraining stage of `mini`: continues the first with half of the tokens from instruction pairs, as in FLAN.

  jpeft pretrain --config pretrain/mini_pairs --config.model.start=runs/mini/model \\
    --config.data.path=CORPUS --workdir runs/mini_pairs

CORPUS is that of the first stage (pretrain/mini); another seed selects other pieces of it.
"""

from ml_collections import ConfigDict

from jpeft.configs.pretrain import mini

_RATES = {
    "books": 0.10,
    "textbooks": 0.06,
    "factbook": 0.03,
    "wikitext": 0.10,
    "govblog": 0.10,
    "speeches": 0.06,
    "dialogue": 0.04,
    "meetings": 0.01,
    "dialogue_pairs": 0.26,
    "meeting_pairs": 0.01,
    "headline_pairs": 0.03,
    "medical_pairs": 0.02,
    "reasoning_pairs": 0.05,
    "science_pairs": 0.03,
    "wordnet_pairs": 0.08,
    "sentiment_pairs": 0.02,
}


def get_config() -> ConfigDict:
    """The config of `mini`'s second stage. `model.start` and `data.path` must be set."""
    config = mini.get_config()
    config.update_from_flattened_dict({f"data.sources.{name}.rate": rate for name, rate in _RATES.items()})
    config.update_from_flattened_dict(
        {
            "train.steps": 3400,
            "train.warmup_steps": 100,
            "train.learning_rate": 0.02,
            "train.seed": 1,
            "log.validate_every": 400,
        }
    )
    return config
