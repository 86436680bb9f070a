"""Draws a run's learning curve. Needs matplotlib (the extra `plots`)."""

import dataclasses
import io
import warnings
from pathlib import Path

from jpeft.errors import UserError
from jpeft.files import parse_json, write_whole

NO_MATPLOTLIB = "no learning_curve.png: matplotlib is not installed (pip install 'jpeft[plots]')"

_TRAINING, _VALIDATION, _MUTED = "#93b4f5", "#c2610c", "#667085"


@dataclasses.dataclass(frozen=True)
class Curve:
    """The points of the learning curve, each `(optimizer steps done, loss)`.

    Attributes:
      training: loss on the rows of each step, before its update.
      validation: loss on the validation split after each epoch.
    """

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]

    @classmethod
    def from_log(cls, path: Path) -> "Curve":
        """Reads a run's `metrics.jsonl`, skipping invalid lines; without a file the curve is empty."""
        training, validation = [], []
        lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
        for line in lines:
            try:
                record = parse_json(line, "")
            except UserError:
                continue
            if not isinstance(record, dict):
                continue
            for points, at, loss in ((training, "step", "loss"), (validation, "steps_done", "validation_loss")):
                if type(record.get(at)) is int and isinstance(record.get(loss), int | float):
                    points.append((record[at], float(record[loss])))
        return cls(training, validation)


def draw_curve(curve: Curve, path: Path, title: str) -> bool:
    """Writes the curve as PNG, byte-identical for identical points. Returns False if matplotlib is not installed."""
    try:
        import matplotlib
        import matplotlib.figure
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        return False
    with matplotlib.rc_context({"font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # characters that the font lacks are drawn as boxes
            figure = matplotlib.figure.Figure(figsize=(6.4, 3.6), layout="constrained")
            axes = figure.subplots()
            if curve.training:
                axes.plot(
                    *zip(*curve.training, strict=True), color=_TRAINING, linewidth=1.2, label="training, each step"
                )
            if curve.validation:
                axes.plot(*zip(*curve.validation, strict=True), color=_VALIDATION, marker="o", markersize=4,
                          label="validation, each epoch")  # fmt: skip
                step, loss = min(curve.validation, key=lambda point: point[1])
                axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, 7), ha="center",
                              color=_VALIDATION)  # fmt: skip
            axes.set_xlabel("optimizer steps", color=_MUTED)
            axes.set_ylabel("loss (nats a token)", color=_MUTED)
            axes.set_title(title.replace("$", r"\$"), fontsize=9, loc="left")
            axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)  # pyright: ignore[reportCallIssue]  (a MaxNLocator)
            if curve.training or curve.validation:
                axes.legend(frameon=False)
            png = io.BytesIO()
            FigureCanvasAgg(figure).print_figure(png, format="png", dpi=130, metadata={"Software": None})
    with write_whole(path) as beside:
        beside.write_bytes(png.getvalue())
    return True
