"""A custom metric: a function of predictions and references, named as `module:function` in a config.

Run it: python examples/custom_metric.py
In a run:  jpeft train --config custom --config.data.path=rows.jsonl --config.model.name=mini
      --config.eval.metrics=examples.custom_metric:first_words
"""

from collections.abc import Sequence

from jpeft.eval.metrics.own import load


def first_words(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of predictions whose first word is that of the reference."""
    right = [p.split()[:1] == r[0].split()[:1] for p, r in zip(predictions, references, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    """Scores three predictions."""
    metric = load("examples.custom_metric:first_words")
    print(f"{metric(['red fox', 'a dog', ''], [['red wolf'], ['the dog'], ['cat']]):.3f} begin with the right word")


if __name__ == "__main__":
    main()
