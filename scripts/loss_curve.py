"""Plot the loss of a pretraining run and of the runs that continued from it, as in docs/mini.md.

Run:  pip install 'jpeft[plots]'; python scripts/loss_curve.py runs/mini runs/mini_pairs --out docs/mini_loss.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]  (an extra)
import numpy as np

_SMOOTHED_OVER = 25  # steps
_KINDS = (("text", "span corruption", "tab:blue"), ("pairs", "instruction pairs", "tab:orange"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the loss of consecutive pretraining runs in one figure.")
    parser.add_argument("workdirs", type=Path, nargs="+", help="run directories, in order of the stages")
    parser.add_argument("--out", type=Path, required=True, help="figure to write, .png or .svg")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    steps, losses = [], []
    for stage, workdir in enumerate(arguments.workdirs):
        before = steps[-1] if steps else 0
        if stage:
            axes.axvline(before, color="0.6", linewidth=0.8, linestyle="--")
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        stage_steps = [before + record["step"] for record in records if "step" in record]
        stage_losses = [record["loss"] for record in records if "step" in record]
        smooth = np.convolve(stage_losses, np.ones(_SMOOTHED_OVER) / _SMOOTHED_OVER, mode="valid")
        unnamed = "_" if stage else ""  # Matplotlib's legend skips these labels: one entry for all stages
        axes.plot(stage_steps, stage_losses, color="0.85", linewidth=0.5, label=f"{unnamed}training, each step")
        label = f"{unnamed}mean of {_SMOOTHED_OVER} steps"
        axes.plot(stage_steps[_SMOOTHED_OVER - 1 :], smooth, color="0.45", linewidth=1.2, label=label)
        for kind, name, colour in _KINDS:
            points = [(before + r["steps_done"], r[f"{kind}_loss"]) for r in records if f"{kind}_loss" in r]
            label = f"{unnamed}held out: {name}"
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)
        steps, losses = steps + stage_steps, losses + stage_losses
    entropy = json.loads((arguments.workdirs[0] / "result.json").read_text())["unigram_entropy"]["text"]
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
