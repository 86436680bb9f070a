"""Warnings about a run's config and its number of steps, one line each, with what to do about it.

Each function checks one thing and returns its warning, or None if all is well. Warnings about test answers are in
`jpeft.eval.look_back`.
"""

from jpeft.config import Run
from jpeft.data.sources import source_in_use
from jpeft.words import counted

FEWEST_STEPS = 50


def without_effect(run: Run) -> str | None:
    """Warns before training about config keys that are set but that this run does not read."""
    source, ablation = source_in_use(run.data.source, run.data.path), run.ablation
    keys = [
        ("data.sample_seed", run.data.sample_seed, source == "sample", "data.source=sample"),
        ("ablation.seed", ablation.seed, ablation.name == "random", "ablation.name=random"),
    ]
    unread = [(key, value, reader) for key, value, is_read, reader in keys if value and not is_read]
    return "; ".join(f"{key}={value} changes nothing here: it is for {reader}" for key, value, reader in unread) or None


def few_steps(train_rows: int, *, batch_size: int, accumulation_steps: int, max_epochs: int) -> str | None:
    """Warns before training of fewer than `FEWEST_STEPS` optimizer steps, and names the keys that would give more.

    Args:
      train_rows: training rows of an epoch.
      batch_size, accumulation_steps, max_epochs: as in the config's section `train`.
    """

    def num_steps(accumulation_steps: int) -> int:
        return -(-train_rows // (batch_size * accumulation_steps)) * max_epochs

    total = num_steps(accumulation_steps)
    if total >= FEWEST_STEPS:
        return None
    epochs = -(-FEWEST_STEPS // (total // max_epochs))
    ways = [f"--config.train.max_epochs={epochs}"]
    if num_steps(1) > total:
        ways.append(f"--config.train.accumulation_steps=1 ({counted(num_steps(1), 'step')})")
    return (
        f"only {counted(total, 'optimizer step')} in {counted(max_epochs, 'epoch')} "
        f"({counted(train_rows, 'row')}, "
        f"{batch_size * accumulation_steps} a step): little can be learned in so few; more with {' or '.join(ways)}"
    )


def still_learning(*, best_epoch: int | None, epochs_run: int, max_epochs: int) -> str | None:
    """Warns after training that the last epoch was the best one, so that more epochs would probably help."""
    if epochs_run < 2 or epochs_run < max_epochs or best_epoch != epochs_run - 1:
        return None
    return (
        f"the last epoch was the best, so it was still learning: train longer with "
        f"--config.train.max_epochs={2 * max_epochs}"
    )
