"""The text of a bfloat16 step compiled for a GPU; no GPU is needed."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from jpeft.accelerators import compiles_for_gpus
from jpeft.plan.compile import child_environment
from jpeft.plan.devices import DEVICES

# FLAN-T5-small's: q, k and v; o; wi_0 and wi_1; wo.
KERNELS = ((512, 384), (384, 512), (512, 1024), (1024, 512))

_PRINTS_A_STEP = """
    import sys
    from jpeft.config import Run
    from jpeft.plan.compile import Workshop
    from jpeft.plan.devices import device_named
    from jpeft.plan.memory import Lengths

    run = Run.from_config({
        "model": {"name": "google/flan-t5-small", "dtype": "bfloat16", "scan_layers": True},
        "method": {"name": sys.argv[1]},
        "mesh": {"model": 2},
    })
    lengths = Lengths(240, 20)  # times 16 rows they are no width of the model
    described = Workshop(device_named("A10"))._describe(run, lengths)
    print(described.programs["train"].traced(*described.arguments["train"]).lower().compile().as_text())
"""


@pytest.fixture(scope="module", params=["lora", "ia3"])
def text(request):
    if not compiles_for_gpus():
        pytest.skip("needs jpeft[plan-gpu]")
    command = [sys.executable, "-c", textwrap.dedent(_PRINTS_A_STEP), request.param]
    environment = {**os.environ, **child_environment(DEVICES["A10"])}
    environment.pop("XLA_FLAGS", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout


def _parts(kernel):
    """The shape of a kernel's shard on each of two devices."""
    return tuple(size // 2 if size != 512 else size for size in kernel)


@pytest.mark.slow
def test_a_bfloat16_step_copies_no_kernel(text):
    """Neither to float32 nor transposed: kernels of a frozen base are read in their stored layout."""
    assert "bf16[8,512,192]{2,1,0}" in text  # the text contains the stacked kernels
    for d_in, d_out in map(_parts, KERNELS):
        assert not re.search(rf"f32\[(\d+,)?{d_in},{d_out}\]", text)
        assert not re.search(rf"bf16\[(\d+,)?{d_in},{d_out}\]\{{(0,1|1,2,0|1,0,2)\}}", text)  # column-major layouts
        turned = re.findall(rf"= bf16\[(?:\d+,)?{d_out},{d_in}\]\S* transpose\(", text)
        assert not turned


@pytest.mark.slow
def test_messages_of_a_bfloat16_step_are_bfloat16(text):
    """Messages as large as activations are bfloat16, only small sums are float32; a frozen base sends nothing."""
    sent = re.findall(r"= \(?(\w+)\[([\d,]*)\]\S* (?:all-reduce|all-gather|reduce-scatter|all-to-all)", text)
    assert sent
    for kind, shape in sent:
        sizes = [int(size) for size in shape.split(",") if size]
        assert kind == "bf16" or len(sizes) < 2 or sizes[-1] <= 32, (kind, shape)
        assert tuple(sizes[-2:]) not in {_parts(kernel) for kernel in KERNELS}


_COUNTS_PRODUCTS = """
    import json
    from jpeft.config import Run
    from jpeft.plan.compile import Workshop
    from jpeft.plan.devices import device_named
    from jpeft.plan.memory import Lengths
    from jpeft.train.kernel_check import PLAIN

    run = Run.from_config({"model": {"name": "mini", "dtype": "bfloat16"}, "method": {"name": "ia3"}})
    described = Workshop(device_named("A10"))._describe(run, Lengths(64, 16))
    lowered = described.programs["train"].traced(*described.arguments["train"]).lower()
    texts = [lowered.compile(options).as_text() for options in (None, PLAIN["gpu"])]
    print(json.dumps([[text.count("__triton_nested_gemm"), text.count("__cublas$")] for text in texts]))
"""


@pytest.mark.slow
def test_the_programs_that_kernels_are_held_beside_have_none_of_their_own():
    """`jpeft.train.kernel_check`: the same number of products, all of them library calls."""
    if not compiles_for_gpus():
        pytest.skip("needs jpeft[plan-gpu]")
    environment = {**os.environ, **child_environment(DEVICES["A10"])}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", textwrap.dedent(_COUNTS_PRODUCTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    (own, _), (none, library) = json.loads(done.stdout)
    assert own > 100 and none == 0 and library >= own
