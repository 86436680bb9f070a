"""LoftQ: LoRA on a quantized base starts as the best approximation, of its rank, of the quantization residual."""

import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.config import Run
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.model.quantized import Quantization
from jpeft.peft.lora import Lora, nearest_of_rank
from jpeft.peft.variables import Adapter
from tests.conftest import random_t5
from tests.model.test_quantized import SMALL, widened

SOME_MAPS, EVERY_MAP = "encoder/.*/(q|wi_0|wo)", ".*/(q|k|v|o|wi_0|wi_1|wo)"
METHOD = Lora.official(rank=4, alpha=2.0, init="loftq")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide")
    t5_weights.save(random_t5(SMALL, seed=3), path)
    return path


def kernels(model):
    found = {name: np.asarray(value) for name, value in named_leaves(model, nnx.Param).items()}
    return {name.removesuffix("/kernel"): value for name, value in found.items() if name.endswith("/kernel")}


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (30, 12)])
def test_the_nearest_of_a_rank_is_that_of_the_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    a, b = nearest_of_rank(matrix, 3)
    u, values, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(a @ b, u[:, :3] * values[:3] @ v[:3], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1))
    zero, nothing = nearest_of_rank(np.zeros(shape, np.float32), 3)
    assert not (zero @ nothing).any()


@pytest.mark.parametrize(
    ("kind", "where", "count"),
    [("nf4,double", SOME_MAPS, 6), pytest.param("int8", EVERY_MAP, 36, marks=pytest.mark.slow)],
)
def test_each_map_begins_nearer_to_the_wide_one_by_as_much_as_its_rank_can(kind, where, count, directory):
    base = t5_weights.load(directory, quantization=Quantization.parse(kind))
    tuned = jpeft.attach(base, METHOD, where=where, wide=directory)
    wide, rounded, leaves = kernels(t5_weights.load(directory)), kernels(widened(base)), named_leaves(tuned, Adapter)
    maps = [path for path in wide if f"{path}/lora_a" in leaves]
    assert len(maps) == count
    for path in maps:
        update = METHOD.scale * np.asarray(leaves[f"{path}/lora_a"]) @ np.asarray(leaves[f"{path}/lora_b"])
        lost = wide[path] - rounded[path]
        if not lost.any():  # T5's wo, which is not quantized and starts as plain LoRA
            assert path.endswith("wo") and np.asarray(leaves[f"{path}/lora_a"]).any() and not update.any()
            continue
        left = np.linalg.norm(lost - update)
        best = np.linalg.norm(np.linalg.svd(lost, compute_uv=False)[4:])
        assert left < 0.99 * np.linalg.norm(lost) and left == pytest.approx(best, rel=1e-4), path


def test_it_is_kept_as_a_plain_lora_of_the_base_in_few_bits(directory, tmp_path):
    base = t5_weights.load(directory, quantization=Quantization("int8"))
    tuned = jpeft.attach(base, METHOD, where="encoder/.*/q", wide=directory)
    with pytest.warns(UserWarning, match="the base is kept in int8"):
        jpeft.save(tuned, METHOD, tmp_path)
    loaded = jpeft.load_adapter(tmp_path, base)
    before, after = (named_leaves(model, Adapter) for model in (tuned, loaded))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert "loftq" not in (tmp_path / "adapter_config.json").read_text()


def test_what_it_cannot_begin_with_is_refused(directory, tmp_path):
    wide, base = t5_weights.load(directory), t5_weights.load(directory, quantization=Quantization("int8"))
    for model, method, where, given, says in (
        (
            base,
            METHOD,
            None,
            None,
            "wide is missing, and LoRA of rank 4, alpha 2, initialised from the quantization residual",
        ),
        (base, Lora.official(), None, directory, "has no use for one"),
        (wide, METHOD, None, directory, "the model is kept wide, and nothing was lost"),
        (base, METHOD, ".*/wo", directory, "none of the maps that it is attached to is quantized"),
        (
            base,
            Lora.official(rank=129, init="loftq"),
            None,
            directory,
            "with fewer singular values than method.lora_init=loftq needs",
        ),
    ):
        with pytest.raises(jpeft.UserError, match=says):
            jpeft.attach(model, method, where=where, wide=given)
    t5_weights.save(base, tmp_path)
    with pytest.raises(jpeft.UserError, match="is quantized already, so that its quantization error is not"):
        jpeft.attach(base, METHOD, wide=tmp_path)
    asked = {"method": {"name": "lora", "reading": "official", "lora_init": "loftq"}}
    with pytest.raises(jpeft.UserError, match="set model.quantization=nf4, model.double_quantization=True, model.quan"):
        Run.from_config({"model": {"name": "mini", "quantization": "nf4,double,wo"}})
    for quantization in ("auto", "none"):
        with pytest.raises(jpeft.UserError, match="set model.quantization to nf4 or int8, for a model that"):
            Run.from_config({**asked, "model": {"name": "mini", "quantization": quantization}})
