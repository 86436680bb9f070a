"""LoftQ initialisation against PEFT's function, which asks for a GPU but also works on a CPU."""

import inspect

import numpy as np
import pytest
import torch
from peft.utils import loftq_utils

from jpeft.model.quantized import Form, host_dequantized, quantize
from jpeft.peft.lora import nearest_of_rank

pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def loftq_init():
    source = inspect.getsource(loftq_utils.loftq_init)
    assert source.count('else "cuda"') == 1
    names = dict(vars(loftq_utils))
    exec(source.replace('else "cuda"', 'else "cpu"'), names)
    return names["loftq_init"]


@pytest.mark.parametrize("shape", [(128, 192), (192, 128)])
def test_one_alternation_is_pefts(shape, loftq_init):
    """For nf4 only: bitsandbytes rounds to int8 via half precision on a CPU, which shows in the residual."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    form = Form("nf4", *shape, "in")
    rounded = host_dequantized(form, quantize(kernel, form))
    a, b = nearest_of_rank(kernel - rounded, 8)
    wide, lora_a, lora_b = loftq_init(torch.tensor(kernel.T.copy()), num_bits=4, reduced_rank=8)  # `[out, in]`
    np.testing.assert_allclose(rounded, wide.numpy().T, atol=1e-5)
    np.testing.assert_allclose(a @ b, (lora_b @ lora_a).numpy().T, atol=1e-5)
    lost = np.linalg.norm(kernel - rounded)
    assert np.linalg.norm(kernel - rounded - a @ b) < 0.95 * lost and lost > 1e-3 * np.linalg.norm(kernel)
