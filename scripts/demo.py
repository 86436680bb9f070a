"""The first thing to try, with no download: a toy base model is made, then a LoRA adapter is tuned on it and tested.

The base is *not* a released T5: it is a randomly initialised one of 0.25 million parameters, fully tuned for half a
minute on generated news items and their topics. The adapter then teaches it, from 100 generated rows, to name the desk
that an item goes to, which the base has never seen. Both are ordinary runs of `main.py`; only model and rows are toys.

Run:  python scripts/demo.py [--out demo]
"""

import argparse
import json
import random
import sys
from pathlib import Path

import tokenizers
from flax import nnx

from jpeft.cli import run_experiment
from jpeft.model import weights
from jpeft.model.config import T5Config
from jpeft.model.t5 import T5

ROOT = Path(__file__).parent.parent

_SUBJECTS = {
    "world": ["the president", "the minister", "the embassy", "a border patrol", "the election council", "the rebels"],
    "sports": ["the coach", "the striker", "the league", "the goalkeeper", "the olympic team", "the champion"],
    "business": ["the bank", "the retailer", "the central bank", "the airline", "the chief executive", "the startup"],
    "science": ["the telescope", "the laboratory", "the software", "the chip maker", "the probe", "the biologist"],
}
_ENDINGS = {
    "world": ["signed a treaty", "called for a cease fire", "met the delegation", "lost the vote"],
    "sports": ["won the final", "missed the season", "signed for the club", "lost in extra time"],
    "business": ["raised its forecast", "cut the dividend", "signed a merger", "lost market share"],
    "science": ["found a new planet", "mapped the genome", "fixed a security hole", "lost contact with earth"],
}
_WHEN = ["on monday", "last night", "in paris", "after a long delay", "for the third time", "to the surprise of many"]
_DESKS = {"world": "foreign desk", "sports": "stadium desk", "business": "money desk", "science": "lab desk"}


def news_items(rows: int, seed: int) -> list[tuple[str, str]]:
    """`(item, topic)` pairs: either half of an item gives its topic away."""
    draw = random.Random(seed)
    items = []
    for _ in range(rows):
        topic = draw.choice(list(_SUBJECTS))
        other = draw.choice(_WHEN)
        items.append((f"{other} {draw.choice(_SUBJECTS[topic])} {draw.choice(_ENDINGS[topic])}", topic))
    return items


def write_rows(path: Path, items: list[tuple[str, str]], question: str, answer: dict[str, str]) -> None:
    """Writes a user's own data as jpeft reads it: JSON lines with `input` and `target`."""
    lines = [json.dumps({"input": f"{text}. {question}", "target": answer[topic]}) for text, topic in items]
    path.write_text("\n".join(lines) + "\n")


def make_base(directory: Path, texts: list[str]) -> None:
    """A random T5 and a tokenizer trained on `texts`, in Hugging Face layout."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=384, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = T5Config(
        vocab_size=384,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    model = T5(config, rngs=nnx.Rngs(0))
    # Small embeddings move faster relative to their size: a random model has a minute to learn something.
    model.shared.embedding.set_value(model.shared.embedding[...] * 0.05)
    weights.save(model, directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="directory for everything that the demo makes")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    topics = news_items(2500, seed=1)
    write_rows(out / "topics.jsonl", topics, "which topic is this?", {topic: topic for topic in _SUBJECTS})
    write_rows(out / "desks.jsonl", news_items(1000, seed=2), "which desk takes this?", _DESKS)
    make_base(
        out / "random", [*(text for text, _ in topics), *_DESKS.values(), "which topic is this? which desk takes this?"]
    )

    def run(name: str, *flags: str) -> int:
        print(f"\n--- {name}: python main.py {' '.join(flags)}\n", file=sys.stderr)
        return run_experiment(["main.py", *flags])

    status = run(
        "1 of 2, a base model to adapt: full tuning of a random T5 on topics",
        f"--config={ROOT / 'configs/lora_custom.py'}",
        "--config.method.name=full",
        f"--config.model.name={out / 'random'}",
        f"--config.data.path={out / 'topics.jsonl'}",
        "--config.train.max_epochs=4",
        "--config.train.accumulation_steps=1",
        "--config.train.learning_rate.warmup=2e-3",
        f"--workdir={out / 'base'}",
    )
    base = out / "base" / "adapter"  # full tuning leaves a whole model there
    status = status or run(
        "2 of 2, a LoRA adapter for desks from 100 rows",
        f"--config={ROOT / 'configs/lora_custom.py'}",
        f"--config.model.name={base}",
        f"--config.data.path={out / 'desks.jsonl'}",
        "--config.data.scale=low",
        "--config.train.max_epochs=20",
        "--config.train.accumulation_steps=1",
        "--config.train.learning_rate.warmup=1e-2",
        "--config.eval.zero_shot=True",
        f"--workdir={out / 'lora'}",
    )
    if status == 0:
        print(
            f"\nThe rows it answered: {out / 'lora' / 'predictions.jsonl'}\n"
            "Next, a released model on rows of your own (needs the Hugging Face hub, or a local model directory):\n"
            "  python main.py --config configs/lora_custom.py --config.data.path=my.jsonl "
            "--config.model.name=google/flan-t5-base\n"
            "or a cell of the paper's benchmark:\n"
            "  python main.py --config configs/ia3_agnews_low.py --config.model.name=google/flan-t5-small"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
