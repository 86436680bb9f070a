"""`main.py`: one run from a config file and overrides."""

from collections.abc import Sequence
from pathlib import Path

from jpeft.cli.config_flags import parse_call

_HELP = """One run of the benchmark, or of a task of your own: trains an adapter, tests it, writes result.json.

  python main.py --config configs/mini.py:lora_agnews_medium --config.data.source=sample     (no network needed)
  python main.py --config configs/ia3_agnews_low.py --workdir runs/ia3_agnews_low
  python main.py --config configs/lora_custom.py --config.data.path=my.jsonl --config.model.name=google/flan-t5-base

Killed and started again with the same command, it goes on where it was. Every key of the config can be set by a flag:

"""


def run(argv: Sequence[str]) -> int:
    from jpeft.config import Run

    call = parse_call(argv, Run, _HELP, in_processes=True)
    if call is None:
        return 0

    from jpeft.mesh.processes import ending_together, is_first
    from jpeft.train.display import Display
    from jpeft.train.loop import execute

    if call.group is not None:
        call.group.join()
    with ending_together(call.group):
        run = Run.from_config(call.config)
        quiet = call.quiet or not is_first()
        result = execute(run, call.workdir, overwrite=call.overwrite, display=Display(quiet=quiet))
        if is_first():
            _print_result(result, call.workdir)
    return 0


def _print_result(result: dict, workdir: Path) -> None:
    seconds = result["seconds"]
    from jpeft.eval.uncertainty import in_words

    trust = in_words(result.get("uncertainty"))  # a result of an earlier version has none
    rows = f"{result['test_examples']} test rows"
    print(f"{result['metric_name']}  {result['metric']:.4f}  ({trust}{'; ' if trust else ''}{rows})")
    for name, value in result["metrics"].items():
        if name != result["metric_name"]:
            print(f"{name}  {value:.4f}")
    if result["zero_shot"]:
        print(f"zero-shot {result['metric_name']}  {result['zero_shot'][result['metric_name']]:.4f}")
    epochs = f"best of epoch {result['best_epoch']}, {result['epochs_run']} run"
    print(f"validation loss  {result['validation_loss']:.4f}, {epochs}")
    print(f"seconds  {', '.join(f'{key} {value:.1f}' for key, value in seconds.items())}")
    print(f"result   {workdir / 'result.json'}")
    print(f"adapter  {workdir / 'adapter'}  ({result['adapter_bytes']:,} bytes)")
    print(f"next     look at {workdir / 'predictions.jsonl'}; train on from here with --config.method.from_adapter, or")
    print("         on rows of your own: python main.py --config configs/lora_custom.py --config.data.path=my.jsonl \\")
    print(f"             --config.model.name={result['model']}")
