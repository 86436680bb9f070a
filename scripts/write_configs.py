"""Write the config files of the paper's grid to `configs/`: 60 cells of Table 1 and 44 ablations of Table 2.

Run:  python scripts/write_configs.py
"""

from pathlib import Path

from jpeft.data.splits import SCALES
from jpeft.data.tasks import BENCHMARK
from jpeft.peft.methods import OF_THE_PAPER, ablations
from jpeft.report.published import published_metric

_NAMES = {"full": "Full tuning", "lora": "LoRA", "ia3": "(IA)³", "bitfit": "BitFit", "prompt": "Prompt tuning"}
_TASKS = {"agnews": "AG News", "cola": "CoLA", "e2e": "E2E NLG", "samsum": "SAMSum"}

_FILE = '''"""{title} on {task}, at most {rows:,} training examples: one cell of the paper's Table {table}.

Run:       python main.py --config configs/{name}.py
Published: {metric} {published} (FLAN-T5-XL)
"""

from jpeft.configs.benchmark import cell


def get_config():
    return cell({arguments})
'''


def write(directory: Path, method: str, task: str, scale: str, ablation: str | None) -> None:
    """Write the config file of one cell."""
    name = "_".join(part for part in (method, ablation, task, scale) if part)
    arguments = {"method": method, "ablation": ablation, "task": task, "scale": scale}
    text = _FILE.format(
        title=_NAMES[method] + (f" ({ablation.replace('_', ' ')})" if ablation else ""),
        task=_TASKS[task],
        rows=SCALES[scale][0],
        table=2 if ablation else 1,
        name=name,
        metric="accuracy" if task in ("agnews", "cola") else "ROUGE-L",
        published=published_metric(method, task, scale, ablation),
        arguments=", ".join(f'{key}="{value}"' for key, value in arguments.items() if value),
    )
    (directory / f"{name}.py").write_text(text)


def main() -> None:
    directory = Path(__file__).parent.parent / "configs"
    for task in BENCHMARK:
        for method in OF_THE_PAPER:
            for scale in ("low", "medium", "high"):
                write(directory, method, task, scale, None)
            for ablation in ablations().get(method, ()):
                write(directory, method, task, "medium", ablation)


if __name__ == "__main__":
    main()
