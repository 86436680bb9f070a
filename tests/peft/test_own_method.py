"""A method from outside the package, in one file, works everywhere like the others; its laws are in `test_laws.py`."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jpeft
from jpeft.adapters.files import load_adapter, save_adapter
from jpeft.adapters.peft_layout import peft_config, peft_lacks, peft_tensors, read_peft
from jpeft.cli import main
from jpeft.errors import RunFailed
from jpeft.leaves import named_leaves
from jpeft.mesh.layout import Layout
from jpeft.peft.attaching import attach, split
from jpeft.peft.interchange import NUMBER, PeftLayout
from jpeft.peft.methods import METHODS
from jpeft.peft.selection import select
from jpeft.peft.variables import Frozen
from jpeft.train.step import make_accumulate, zero_sums
from tests.conftest import TINY, make_batch
from tests.own_method import RankOne
from tests.peft.filled import filled


@pytest.fixture(autouse=True)
def rank_one_is_a_method(monkeypatch):
    monkeypatch.setitem(METHODS, "rank_one", RankOne)


@pytest.fixture
def tuned(tiny_t5, key):
    return filled(attach(tiny_t5, RankOne(), select(tiny_t5, RankOne()), key), key)


@pytest.mark.slow
def test_it_lies_on_a_mesh_as_the_weights_of_its_sites_do(tuned, key):
    graphdef, adapter, base = split(tuned)
    layout = Layout.of_devices(fsdp=2, model=2)
    cut = {str(path[-2].key): sharding.spec for path, sharding in jax.tree.leaves_with_path(layout.shardings(adapter))}
    assert cut["one_v"][-1] == "model" and not any(cut["one_u"])  # the outputs of q and v are sharded
    batch = {name: np.asarray(x) for name, x in make_batch(TINY, rows=4, enc_len=8, dec_len=5).items()}
    accumulate = make_accumulate(graphdef)
    alone = jax.jit(accumulate)(zero_sums(adapter), adapter, base, key, 0, 0, batch)
    placed, frozen = layout.place(adapter), layout.place(base)
    spread = jax.jit(layout.traced(accumulate))(zero_sums(placed), placed, frozen, key, 0, 0, batch)
    np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), spread.grads, alone.grads)


def test_it_is_merged_as_it_computes(tuned, batch):
    logits = jax.jit(lambda model: model(batch["encoder_input_tokens"], batch["decoder_input_tokens"]))
    merged = jpeft.merge(tuned)
    assert not jax.tree.leaves(nnx.state(merged, jpeft.Adapter))
    np.testing.assert_allclose(logits(merged), logits(tuned), atol=1e-5)


def test_hugging_face_peft_has_no_place_for_it_and_export_says_so(tuned, tiny_t5, tmp_path, capsys):
    assert peft_lacks(RankOne()) == "rank_one"
    chosen = select(tiny_t5, RankOne())
    save_adapter(tuned, RankOne(), chosen, tmp_path / "adapter", base_name="mini")
    assert (tmp_path / "adapter" / "jpeft_adapter.json").is_file()
    _, method, sites = load_adapter(tmp_path / "adapter", tiny_t5)
    assert (method, sites) == (RankOne(), chosen)


@dataclasses.dataclass(frozen=True)
class PeftRankOne(RankOne, PeftLayout):
    """`RankOne` with a layout as PEFT might have it."""

    name: ClassVar[str] = "peft_rank_one"
    peft_type: ClassVar[str] = "RANK_ONE"
    peft_settings: ClassVar = {"one_stddev": NUMBER}
    peft_ignored: ClassVar = ("one_dropout",)
    peft_refused: ClassVar = ("one_bias",)
    peft_leaves: ClassVar = {"one_u": "one_U.weight", "one_v": "one_V"}

    def peft_config(self, chosen, peft):
        return {"one_stddev": self.stddev, "target_modules": peft.target_modules(chosen)}

    @classmethod
    def from_peft(cls, file):
        leaves = {}
        for path, (_, tensors) in file.by_path().items():
            leaves |= {f"{path}/{leaf}": tensors[theirs] for leaf, theirs in cls.peft_leaves.items()}
        return cls(stddev=float(file.number("one_stddev", 0.1))), leaves, []


class MaskedSite(nnx.Module):
    """A bias of some outputs, drawn when it is made."""

    def __init__(self, key, width: int):
        self.masked_shift = jpeft.Adapter(jnp.zeros(width))
        self.masked_size = Frozen(jax.random.uniform(key, (width,)))
        self.masked_chosen = Frozen(jax.random.bernoulli(key, shape=(width,)))

    def __call__(self, compute, x):
        return compute(x) + jnp.where(self.masked_chosen[...], self.masked_size[...] * self.masked_shift[...], 0)


@dataclasses.dataclass(frozen=True)
class Masked(jpeft.AddedModules):
    name: ClassVar[str] = "masked"

    @property
    def default_roles(self):
        return ("q",)

    def create(self, site, key, model):
        return MaskedSite(key, site.d_out)


class LeftOut(Masked):
    """Its frozen leaves are not in the file."""

    name: ClassVar[str] = "left_out"

    def to_save(self, leaves):
        return self, {name: value for name, value in leaves.items() if name.endswith("shift")}


@pytest.mark.parametrize("cls", [Masked, LeftOut])
def test_frozen_leaves_are_loaded_if_they_are_saved(cls, tiny_t5, key, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, cls.name, cls)
    chosen = select(tiny_t5, cls())
    tuned = filled(attach(tiny_t5, cls(), chosen, key), key)
    save_adapter(tuned, cls(), chosen, tmp_path, base_name="tiny")
    loaded, drawn = load_adapter(tmp_path, tiny_t5)[0], attach(tiny_t5, cls(), chosen, jax.random.key(0))
    for kind, source in ((jpeft.Adapter, tuned), (Frozen, tuned if cls is Masked else drawn)):
        jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded, kind), nnx.state(source, kind))
    assert (
        nnx.state(loaded, Frozen)["encoder"]["segments"][0]["self_attention"]["q"]["adapter"]["masked_chosen"].dtype
        == bool
    )


def test_whole_numbers_that_floats_do_not_hold_are_not_saved(tiny_t5, key, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, Masked.name, Masked)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, shape: jnp.full(shape, 2**24 + 1))
    chosen = select(tiny_t5, Masked())
    with pytest.raises(jpeft.UserError, match="masked_chosen holds int32 numbers .* below 2.24, or leave"):
        save_adapter(attach(tiny_t5, Masked(), chosen, key), Masked(), chosen, tmp_path, base_name="tiny")


class Doubled(jpeft.Lora):
    """A method that inherits name and layout from LoRA and computes otherwise."""

    @property
    def scale(self):
        return 2 * super().scale


class Named(Doubled):
    name: ClassVar[str] = "doubled"


def test_a_subclass_is_loaded_as_what_it_is_or_not_saved(tiny_t5, tmp_path, monkeypatch, key):
    options = {"rank": 2, "scaling_vectors": False}
    tuned = attach(tiny_t5, Doubled(**options), select(tiny_t5, Doubled(**options)), key)
    with pytest.raises(
        jpeft.UserError, match="Doubled cannot be loaded again: .*METHODS has Lora under its name 'lora'"
    ):
        jpeft.save(tuned, Doubled(**options), tmp_path / "new")
    with pytest.raises(
        jpeft.UserError, match=r"has no method under its name 'doubled'; .* METHODS\[Named.name\] = Named"
    ):
        jpeft.save(tuned, Named(**options), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(METHODS, Named.name, Named)
    jpeft.save(tuned, Named(**options), tmp_path)
    _, method, _ = load_adapter(tmp_path, tiny_t5)
    assert type(method) is Named and method == Named(**options)
    with pytest.raises(
        jpeft.UserError, match="needs a base without an adapter, and the model has one at decoder/.*merge"
    ):
        load_adapter(tmp_path, tuned)


def test_a_layout_of_peft_that_it_declares_is_written_and_read(tiny_t5, key, monkeypatch):
    monkeypatch.setitem(METHODS, PeftRankOne.name, PeftRankOne)
    method = PeftRankOne(stddev=0.5)
    chosen = select(tiny_t5, method)
    assert peft_lacks(method, chosen, tiny_t5) is None
    model = attach(tiny_t5, method, chosen, key)
    leaves = {name: np.asarray(value) for name, value in named_leaves(model, jpeft.Adapter).items()}
    config, tensors = peft_config(tiny_t5, method, chosen), peft_tensors(tiny_t5, PeftRankOne, leaves)
    in_state_dict = {name: name.replace("one_U.", "one_U.mine.").replace("one_V", "one_V.mine") for name in tensors}
    for stored in (tensors, {in_state_dict[name]: value for name, value in tensors.items()}):
        read, found, notes = read_peft(config | {"one_dropout": 0.1}, stored, tiny_t5, source="here")
        assert read == method and notes == () and found.keys() == leaves.keys()
        assert all(np.array_equal(found[name], leaves[name]) for name in leaves)
    _, _, notes = read_peft(config | {"r": 8}, tensors, tiny_t5, source="here")
    assert notes == ("settings that jpeft does not know were passed over: r",)
    with pytest.raises(RunFailed, match="one_stddev is 'large'; expected a number"):
        read_peft(config | {"one_stddev": "large"}, tensors, tiny_t5, source="here")
    with pytest.raises(jpeft.UserError, match="uses PEFT's one_bias"):
        read_peft(config | {"one_bias": True}, tensors, tiny_t5, source="here")


@pytest.mark.slow
def test_it_trains_by_name_and_its_run_is_predicted_from_and_exported(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--config.method.name=rank_one", "--config.model.name=mini", "--config.data.source=sample"]
    flags += ["--config.data.task=agnews", "--config.data.scale=low", "--config.train.max_epochs=1"]
    flags += [f"--config.data.max_{part}=16" for part in ("train", "validation", "test")]
    assert main(["train", "--config", "lora_agnews_low", *flags, "--workdir", str(run)]) == 0
    assert "rank_one" in (run / "adapter" / "jpeft_adapter.json").read_text()
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "its format has no place for rank_one" in printed + (tmp_path / "out" / "README.md").read_text()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Ferrari wins in Monza"}\n')
    assert main(["predict", "--adapter", str(run), "--input", str(rows)]) == 0
