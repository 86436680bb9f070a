"""In a batch with several adapters, each row equals the result of its adapter alone."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeft.adapters.files import save_adapter
from jpeft.errors import UserError
from jpeft.leaves import fill
from jpeft.model.stack import arrange
from jpeft.model.t5 import T5
from jpeft.peft.attaching import attach
from jpeft.peft.bitfit import BitFit
from jpeft.peft.full import Full
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection
from jpeft.peft.variables import Adapter
from jpeft.peft.views import View
from jpeft.serve.bank import AdapterBank, BankFull, UnknownAdapter
from jpeft.serve.pool import room_for
from tests.conftest import TINY, make_batch, random_t5, slow_but
from tests.serve.adapters import ABLATED, METHODS, make, room_for_all, tiny_base

SOME = ("lora_random", "lora_drop_self_attention", "ia3_later", "ia3_drop_attention")
ADAPTERS = {**METHODS, **{name: ABLATED[name] for name in SOME}}
QUICK = ("lora", "lora_of_the_table", "ia3_official", "bitfit", "prompt", "dora")
ROWS = 8


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def adapters(base):
    return {name: make(base, *held, seed=i) for i, (name, held) in enumerate(ADAPTERS.items())}


@pytest.fixture(scope="module")
def bank(base, adapters):
    bank = AdapterBank(base, capacity=len(adapters) + 2, room=room_for_all(base))
    for name, adapter in adapters.items():
        bank.put(name, adapter.method, adapter.leaves)
    return bank


@pytest.fixture(scope="module")
def tokens():
    batch = make_batch(TINY, rows=ROWS, enc_len=8, dec_len=5)
    return np.asarray(batch["encoder_input_tokens"]), np.asarray(batch["decoder_input_tokens"])


@pytest.fixture(scope="module")
def bank_of_three(base):
    return AdapterBank(base, capacity=3, room=room_for_all(base))


def test_room_does_not_depend_on_what_memory_holds(base, monkeypatch):
    """Room is computed from placeholder leaves, which must be initialised: leftover memory could overflow."""
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, np.finfo(dtype).max, dtype))
    AdapterBank(base, capacity=1, room=room_for_all(base))


@pytest.fixture
def small(bank_of_three):
    """An empty bank with room for three adapters."""
    yield bank_of_three
    for name in bank_of_three.names:
        bank_of_three.remove(name)


@jax.jit
def alone(model: T5, encoder_tokens, decoder_tokens):
    return model(encoder_tokens, decoder_tokens)


@pytest.fixture(scope="module")
def mixed(bank, tokens):
    """Logits of every row with each adapter and with none, from mixed batches: `{name: [rows, dec_len, vocab]}`."""
    names = [None, *ADAPTERS]
    logits = np.empty((len(names), *tokens[1].shape, TINY.vocab_size), np.float32)
    for start in range(len(names)):
        of_row = [(start + row) % len(names) for row in range(ROWS)]
        logits[of_row, range(ROWS)] = bank.logits(*tokens, names=[names[i] for i in of_row])
    return dict(zip(names, logits, strict=True))


@pytest.mark.parametrize("name", slow_but(QUICK, ADAPTERS))
def test_a_row_of_a_mixed_batch_is_its_adapter_alone(name, adapters, mixed, tokens):
    expected = alone(adapters[name].model, *tokens)
    # For lora_official, two compilations of `alone` differ by 9e-6, four times as much as for most others.
    np.testing.assert_allclose(mixed[name], expected, rtol=0, atol=2e-5)
    assert np.abs(mixed[name] - mixed[None]).max() > 1e-2  # the adapter has an effect


def test_each_map_of_the_base_is_made_wide_once_for_an_adapter(base, adapters, monkeypatch):
    """DoRA needs all kernels, and the kernels of a stack's layers are one array."""
    bank = AdapterBank(base, capacity=1, room=room_for(base, adapters["dora"].method))
    asked, matrix = [], View.matrix
    monkeypatch.setattr(View, "matrix", lambda view, module: asked.append(id(module)) or matrix(view, module))
    bank.put("dora", adapters["dora"].method, adapters["dora"].leaves)
    sites = {leaf.rpartition("/")[0] for leaf in adapters["dora"].leaves}
    assert 0 < len(asked) == len(set(asked)) < len(sites)


@pytest.mark.slow
def test_every_ablation(base, tokens):
    bank = AdapterBank(base, capacity=len(ABLATED), room=room_for_all(base))
    for name, held in ABLATED.items():
        adapter = make(base, *held)
        bank.put(name, adapter.method, adapter.leaves)
        mixed = bank.logits(*tokens, names=[name, None] * (ROWS // 2))
        np.testing.assert_allclose(mixed[0], alone(adapter.model, *tokens)[0], rtol=0, atol=1e-5)


def test_a_row_without_an_adapter_is_the_base(base, mixed, tokens):
    np.testing.assert_allclose(mixed[None], alone(base, *tokens), rtol=0, atol=1e-5)


def test_answers_of_a_mixed_batch_are_those_of_each_alone(bank, base, adapters, tokens):
    names = [None, "lora", "ia3_official", "bitfit_official", "prompt", "prompt_of_another_length", "lora_random", None]
    generated = np.asarray(bank.generate(tokens[0], names, max_length=5).tokens)
    so_far = np.pad(generated, ((0, 0), (1, 0)))[:, :-1]  # shifted right by the start token
    for row, name in enumerate(names):
        logits = alone(base if name is None else adapters[name].model, tokens[0], so_far)
        is_real = generated[row] != TINY.pad_token_id
        np.testing.assert_array_equal(generated[row][is_real], np.argmax(logits[row], axis=-1)[is_real])
    assert len({row.tobytes() for row in generated}) > 4


@pytest.mark.slow
def test_layers_that_are_run_one_after_the_other(adapters, tokens, mixed):
    base = tiny_base()
    arrange((base.encoder, base.decoder), scan=False)
    bank = AdapterBank(base, capacity=3, room=room_for_all(base))
    names = ["lora", "ia3_drop_attention", "bitfit_official"]
    for name in names:
        bank.put(name, adapters[name].method, adapters[name].leaves)
    of_row = [None, *names, None, *names]
    for row, logits in enumerate(bank.logits(*tokens, names=of_row)):
        np.testing.assert_allclose(logits, mixed[of_row[row]][row], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_bfloat16_base(adapters, tokens):
    base = random_t5(TINY, dtype=jnp.bfloat16)
    nnx.update(base, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(base, nnx.Param)))
    bank = AdapterBank(base, capacity=3, room=room_for_all(base))
    names = ["lora", "ia3", "prompt"]
    for name in names:
        bank.put(name, adapters[name].method, adapters[name].leaves)
    of_row = [*names, None] * 2
    for row, logits in enumerate(bank.logits(*tokens, names=of_row)):
        if (name := of_row[row]) is not None:
            attached = attach(base, adapters[name].method, adapters[name].sites, jax.random.key(0))
            fill(attached, Adapter, lambda leaf, shape, part, n=name: adapters[n].leaves[leaf][part], np.float32)
            np.testing.assert_allclose(logits, alone(attached, *tokens)[row], rtol=0, atol=2e-2)


def test_a_bank_computes_only_what_it_has_room_for(base):
    bank = AdapterBank(base, capacity=2, room=room_for(base, Lora.official(rank=3)))
    leaves = {name.rpartition("/")[2] for name in bank.largest}
    assert leaves == {"lora_a", "lora_b", "lora_scale"}
    assert bank.largest["encoder/layers/1/self_attention/q/lora_a"] == (3, 16)
    values = 3 * (16 + 8) + 1  # rank, d_in + d_out; a scale
    assert bank.nbytes == 3 * 4 * 6 * 2 * values  # slots, bytes, attentions, q and v


def test_the_base_is_shared(base, bank):
    ours = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(base, nnx.Param))}
    assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(bank.base)} == ours


def test_nothing_compiles_while_adapters_come_and_go(small, adapters, tokens):
    small.logits(*tokens, names=[None] * ROWS)
    compiled = small.num_programs
    for i in range(small.capacity):
        small.put(f"{i}", adapters["lora"].method, adapters["lora"].leaves)
        small.logits(*tokens, names=[f"{i}"] * ROWS)
    small.remove("0")
    small.put("other", adapters["ia3"].method, adapters["ia3"].leaves)
    small.logits(*tokens, names=["other", None] * (ROWS // 2))
    assert small.num_programs == compiled


def test_a_slot_that_is_used_again_holds_nothing_of_the_one_before(small, adapters, tokens, mixed):
    for before, after in [("bitfit_official", "lora"), ("prompt", "ia3_drop_attention"), ("lora", "prompt")]:
        small.put("x", adapters[before].method, adapters[before].leaves)
        small.put("x", adapters[after].method, adapters[after].leaves)
        np.testing.assert_allclose(small.logits(*tokens, names=["x"] * ROWS), mixed[after], rtol=0, atol=1e-5)
        small.remove("x")
        assert small.names == []


def test_what_a_device_failed_to_write_is_written_before_it_answers(small, adapters, tokens, mixed, monkeypatch):
    """Otherwise the slot would still hold its previous adapter."""
    small.put("before", adapters["bitfit_official"].method, adapters["bitfit_official"].leaves)
    small.remove("before")
    write = small._write

    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small, "_write", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        small.put("x", adapters["lora"].method, adapters["lora"].leaves)
    with pytest.raises(RuntimeError, match="out of memory"):
        small.logits(*tokens, names=["x"] * ROWS)
    monkeypatch.setattr(small, "_write", write)
    np.testing.assert_allclose(small.logits(*tokens, names=["x"] * ROWS), mixed["lora"], rtol=0, atol=1e-5)


def test_what_is_not_there_is_named(small, adapters, tokens):
    small.put("there", adapters["lora"].method, adapters["lora"].leaves)
    with pytest.raises(UnknownAdapter, match="no adapter 'gone'") as raised:
        small.generate(tokens[0], [None, "there", "gone", "gone"] * 2, max_length=5)
    assert raised.value.names == {"gone"}
    small.remove("there")
    with pytest.raises(UnknownAdapter, match="'there'"):
        small.remove("there")


def test_a_full_bank_takes_no_other_and_keeps_what_it_has(small, adapters):
    lora = adapters["lora"]
    for name in "abc":
        small.put(name, lora.method, lora.leaves)
    with pytest.raises(BankFull, match="it holds 3 adapters; remove one first"):
        small.put("d", lora.method, lora.leaves)
    small.put("b", lora.method, lora.leaves)  # replaces an adapter of the same name
    small.remove("a")
    small.put("d", lora.method, lora.leaves)
    assert small.names == ["b", "c", "d"]


@pytest.fixture(scope="module")
def narrow(base):
    """A bank with room for LoRA of rank 3 on q and v, and for prompts of 4."""
    return AdapterBank(base, capacity=2, room=room_for(base, Lora.official(rank=3), Prompt(4)), base_names=["tiny"])


@pytest.mark.parametrize(
    ("method", "selection", "says"),
    [
        (Lora.official(rank=4), Selection(), "rank 4 at .*/q; the bank has room for 3"),
        (Prompt(5), Selection(), "5 soft tokens at encoder_input; the bank has room for 4"),
        (Lora.official(rank=2), Selection(names=["k"]), "no room for lora at .*/k"),
        (Lora(rank=2), Selection(names=["q"]), "no room for lora at .*/q \\(scale_in\\)"),
        (BitFit(), Selection(), "no room for bitfit at .*/k \\(bias\\)"),
        (Full(), Selection(names=["q"]), "changes weights of the base \\(full tuning\\)"),
    ],
)
def test_what_there_is_no_room_for_is_refused_by_name(method, selection, says, base, narrow):
    adapter = make(base, method, selection)
    with pytest.raises(UserError, match=f"adapter 'x'.*{says}"):
        narrow.put("x", method, adapter.leaves)
    assert narrow.names == []


def test_a_smaller_adapter_than_there_is_room_for_fits(base, narrow):
    for method in (Lora.official(rank=1), Prompt(1)):
        narrow.put("x", method, make(base, method).leaves)
        narrow.remove("x")


@pytest.mark.parametrize(
    ("path", "d_in", "says"),
    [
        ("encoder/layers/0/self_attention/q", 24, "q/lora_a should have shape \\(16, 2\\), it has \\(24, 2\\)"),
        ("encoder/layers/2/self_attention/q", 16, "does not fit this base, which has no encoder/layers/2"),
    ],
)
def test_an_adapter_of_other_sizes_is_refused(path, d_in, says, narrow):
    leaves = {f"{path}/lora_a": np.ones((d_in, 2), np.float32), f"{path}/lora_b": np.ones((2, 8), np.float32)}
    with pytest.raises(UserError, match=says):
        narrow.put("x", Lora.official(rank=2), leaves)


def test_an_adapter_of_a_base_of_another_name_is_refused(base, adapters, narrow, tmp_path):
    adapter = adapters["prompt_of_another_length"]
    save_adapter(adapter.model, adapter.method, adapter.sites, tmp_path, base_name="other")
    with pytest.raises(UserError, match="is an adapter of other; the base here is tiny"):
        narrow.add("x", tmp_path)


def test_a_damaged_adapter_is_refused(base, narrow):
    method = Lora.official(rank=2)
    leaves = make(base, method).leaves
    first = "encoder/layers/0/self_attention/q/lora_b"
    with pytest.raises(UserError, match="is incomplete: .* it has \\['lora_a'\\]"):
        narrow.put("x", method, {name: value for name, value in leaves.items() if name != first})
    with pytest.raises(UserError, match="not finite"):
        narrow.put("x", method, {**leaves, first: np.full_like(leaves[first], np.nan)})


@pytest.mark.parametrize(
    "name", ["lora", "lora_of_another_rank_and_alpha", "ia3_official", "prompt", "bitfit_official"]
)
def test_adapters_are_read_from_their_directories(name, small, base, adapters, mixed, tokens, tmp_path):
    adapter = adapters[name]
    save_adapter(adapter.model, adapter.method, adapter.sites, tmp_path, base_name="tiny")
    assert type(small.add("x", tmp_path)) is type(adapter.method)
    np.testing.assert_allclose(small.logits(*tokens, names=["x"] * ROWS), mixed[name], rtol=0, atol=1e-5)


def test_a_batch_is_answered_by_what_its_names_meant_while_others_add_and_remove(small, adapters, tokens, mixed):
    """One thread keeps replacing the adapter of a name; a batch in another thread uses one of them throughout."""
    stop = threading.Event()

    def change_places():
        while not stop.is_set():
            for whose in ("lora", "ia3"):
                small.put("x", adapters[whose].method, adapters[whose].leaves)
                time.sleep(0.001)
            small.remove("x")
            small.put("slot of x", adapters["prompt"].method, adapters["prompt"].leaves)
            small.put("x", adapters["ia3"].method, adapters["ia3"].leaves)
            small.remove("slot of x")

    thread = threading.Thread(target=change_places)
    small.put("steady", adapters["bitfit"].method, adapters["bitfit"].leaves)
    small.put("x", adapters["lora"].method, adapters["lora"].leaves)
    thread.start()
    seen = {"lora": 0, "ia3": 0}
    try:
        while min(seen.values()) < 10:
            try:
                logits = np.asarray(small.logits(*tokens, names=["x", "steady", None, "x"] * 2))
            except UnknownAdapter:
                continue
            (x,) = (name for name in seen if np.allclose(logits[0], mixed[name][0], rtol=0, atol=1e-5))
            seen[x] += 1
            for row, whose in enumerate([x, "bitfit", None, x] * 2):
                np.testing.assert_allclose(logits[row], mixed[whose][row], rtol=0, atol=1e-5)
    finally:
        stop.set()
        thread.join()
