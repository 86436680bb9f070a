"""Compare the memory that XLA plans for a training step on a CPU with the memory that the process uses.

python scripts/memory_agreement.py [--model mini|google/flan-t5-small] [--method lora] [--rows 16]

Without --model, every case is measured: mini and FLAN-T5-small, LoRA and full tuning, 4 and 16 rows, each in a process
of its own, with random weights. The table has the planned bytes, for what is held between steps and for the step,
beside the growth of the resident memory; the growth during compilation belongs to the compiler and has its own column.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

MODELS, METHODS, ROWS = ("mini", "google/flan-t5-small"), ("lora", "full"), (4, 16)


def measured(model: str, method: str, rows: int) -> dict[str, float]:
    """Planned bytes and the growth of this process's resident memory at each stage, in bytes."""
    from jpeft.allocator import keep_freed_memory, return_freed_memory

    keep_freed_memory()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jpeft.config import Run
    from jpeft.plan.memory import Lengths, describe
    from jpeft.program import needed_memory

    run = Run.from_config(
        {
            "model": {"name": model, "dtype": "float32"},
            "method": {"name": method},
            "data": {"source": "sample"},
            "train": {"batch_size": rows},
        }
    )
    lengths = Lengths(256, 16)
    jax.block_until_ready(jnp.zeros(8) + 1)
    described = describe(run, lengths)
    start = _now("VmRSS")  # measured after `describe`, which imports the package
    program, shapes = described.programs["train"], described.arguments["train"]
    arrays = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes[:3])
    opt = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), described.arguments["update"][0].opt_state)
    batch = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in shapes[6].items()}
    key = jax.random.key(0, impl="rbg")
    jax.block_until_ready((arrays, opt))
    gc.collect()
    return_freed_memory()
    loaded = _now("VmRSS")
    arguments = (*arrays, key, np.int32(0), np.int32(0), batch)
    program.prepare(*arguments)
    gc.collect()
    return_freed_memory()
    compiled = _now("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    sums = program(*arguments)
    jax.block_until_ready(program(sums, *arguments[1:]))
    peak = _now("VmHWM")
    held, step = described.held.bytes, needed_memory(program.compiled[0])
    return {
        "planned_held": held,
        "planned_step": step,
        "held": loaded - start,
        "compiler": compiled - loaded,
        "step": peak - compiled,
        "grown_over_planned": (loaded - start + peak - compiled) / (held + step),
    }


def _now(what: Literal["VmRSS", "VmHWM"]) -> int:
    from jpeft.run.environment import resident_bytes

    found = resident_bytes(what)
    assert found is not None, "Linux tells"
    return found


def main() -> int:
    """Measure one case, or each case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model of the single case to measure (default: all cases)")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--rows", type=int, default=16, help="rows of a micro-batch")
    arguments = parser.parse_args()
    if arguments.model:
        print(json.dumps(measured(arguments.model, arguments.method, arguments.rows)))
        return 0
    print("| model, method | rows | planned: held + step | grown: held + step | compiler | grown / planned |")
    for model, method, rows in itertools.product(MODELS, METHODS, ROWS):
        order = [sys.executable, __file__, f"--model={model}", f"--method={method}", f"--rows={rows}"]
        found = json.loads(subprocess.run(order, check=True, capture_output=True, text=True).stdout)
        mb = {name: f"{value / 1e6:,.0f}" for name, value in found.items()}
        print(
            f"| {model}, {method} | {rows} | {mb['planned_held']} + {mb['planned_step']} MB "
            f"| {mb['held']} + {mb['step']} MB | {mb['compiler']} MB | {found['grown_over_planned']:.3f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
