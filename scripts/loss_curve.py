"""Draws the loss of a pretraining run from its metrics.jsonl, as in docs/mini.md.

Run:  pip install 'jpeft[plots]'; python scripts/loss_curve.py runs/mini --out docs/mini_loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]  (an extra)
import numpy as np

_SMOOTHED_OVER = 25  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the loss of a pretraining run.")
    parser.add_argument("workdir", type=Path, help="directory of the pretraining run")
    parser.add_argument("--out", type=Path, required=True, help="picture to write: .png or .svg")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in (arguments.workdir / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((arguments.workdir / "result.json").read_text())
    steps = [record["step"] for record in records if "step" in record]
    losses = [record["loss"] for record in records if "step" in record]
    smooth = np.convolve(losses, np.ones(_SMOOTHED_OVER) / _SMOOTHED_OVER, mode="valid")

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    axes.plot(steps, losses, color="0.85", linewidth=0.5, label="training, each step")
    axes.plot(steps[_SMOOTHED_OVER - 1 :], smooth, color="0.45", linewidth=1.2, label=f"mean of {_SMOOTHED_OVER} steps")
    for kind, name, colour in (("text", "span corruption", "tab:blue"), ("pairs", "instruction pairs", "tab:orange")):
        points = [(r["steps_done"], r[f"{kind}_loss"]) for r in records if f"{kind}_loss" in r]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=f"held out: {name}")
    entropy = result["unigram_entropy"]["text"]
    axes.axhline(entropy, color="tab:blue", linestyle=":", linewidth=1)
    axes.annotate(
        "span corruption by token frequency alone", (steps[-1], entropy), ha="right", va="bottom", color="tab:blue"
    )
    axes.set(
        xlabel="step", ylabel="cross-entropy, nats a token", ylim=(min(losses) - 0.2, np.quantile(losses, 0.99) + 0.5)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
