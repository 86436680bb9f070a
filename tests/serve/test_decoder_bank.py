"""A batch with several adapters of a decoder-only model: each row equals the result of its adapter alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeft.eval.labels import PackedLabels, packed_log_probs
from jpeft.leaves import named_leaves
from jpeft.model.decode import greedy
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.peft.attaching import attach
from jpeft.peft.bitfit import BitFit
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prefix import Prefix
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from jpeft.serve.bank import AdapterBank
from jpeft.serve.pool import room_for
from tests.decoders import TINY_DECODERS, random_decoder
from tests.peft.filled import filled

METHODS = {
    "lora": Lora(),
    "lora_official": Lora.official(rank=3),
    "ia3": Ia3(),
    "bitfit_official": BitFit.official(),
    "prompt": Prompt(prompt_length=4),
    "prompt_of_another_length": Prompt(prompt_length=2, init="uniform"),
    "prefix": Prefix(prefix_length=5),
    "prefix_of_another_length": Prefix(prefix_length=2, init="normal"),
}
NAMES = [None, *METHODS, None]
INPUTS = np.random.default_rng(0).integers(3, 320, (len(NAMES), 6)).astype(np.int32)
for row in range(len(NAMES)):
    INPUTS[row, 6 - row % 4 :] = 0


@pytest.fixture(scope="module", params=[pytest.param("llama", marks=pytest.mark.slow), "gpt_neo"])
def held(request):
    """`(base, adapted models by name, bank)`; GPT-Neo has learned positions and a window."""
    base, key = random_decoder(TINY_DECODERS[request.param]), jax.random.key(3)
    models = {
        n: filled(attach(base, m, select(base, m), key), jax.random.key(i)) for i, (n, m) in enumerate(METHODS.items())
    }
    bank = AdapterBank(base, capacity=len(METHODS), room=room_for(base, *METHODS.values()))
    for name, model in models.items():
        leaves = {leaf: np.asarray(value) for leaf, value in named_leaves(model, Adapter).items()}
        bank.put(name, METHODS[name], leaves)
    return base, {**models, None: base}, bank


def test_logits_of_a_mixed_batch_are_those_of_each_alone(held):
    base, models, bank = held
    tokens = np.where(INPUTS == 0, 5, INPUTS)
    mixed, of_base = bank.logits(tokens, names=NAMES), jax.jit(lambda m, t: m(t))(base, tokens)
    forward = jax.jit(lambda model, tokens: model(tokens))
    for row, name in enumerate(NAMES):
        np.testing.assert_allclose(mixed[row], forward(models[name], tokens)[row], atol=2e-5)
        assert (np.abs(mixed[row] - of_base[row]).max() > 1e-2) == (name is not None)


def test_prefixes_of_different_layers_shift_the_learned_positions_of_their_own_rows():
    base = random_decoder(TINY_DECODERS["gpt_neo"])
    table = base.positions.embedding
    table.set_value(20 * table[...])  # so that a shifted position changes the result
    DECODER_FAMILY.arrange(base, scan_layers=False)
    method, models = Prefix(prefix_length=5, init="normal"), {}
    bank = AdapterBank(base, capacity=2, room=room_for(base, method))
    for layer in (0, 2):
        chosen = select(base, method, Selection(layers=[layer]))
        models[str(layer)] = filled(attach(base, method, chosen, jax.random.key(layer)), jax.random.key(layer))
        held = named_leaves(models[str(layer)], Adapter)
        bank.put(str(layer), method, {leaf: np.asarray(value) for leaf, value in held.items()})
    tokens = np.tile(np.arange(5, 11, dtype=np.int32), (2, 1))
    for mixed, model in zip(bank.logits(tokens, names=list(models)), models.values(), strict=True):
        np.testing.assert_allclose(mixed, jax.jit(lambda model, tokens: model(tokens))(model, tokens)[0], atol=5e-5)


@pytest.mark.slow
def test_answers_and_labels_of_a_mixed_batch_are_those_of_each_alone(held):
    """For inputs and soft prompts of unequal lengths."""
    _, models, bank = held
    packed = PackedLabels(
        texts=("a", "b"),
        targets=np.array([20, 21, 1, 30, 1, 0, 0, 0], np.int32),
        inputs=np.array([0, 20, 21, 0, 30, 0, 0, 0], np.int32),
        segment_ids=np.array([0, 0, 0, 1, 1, 4, 4, 4], np.int32),
    )
    rows = [np.tile(ids, (len(NAMES), 1)) for ids in (packed.inputs, packed.targets, packed.segment_ids)]
    generated = np.asarray(bank.generate(INPUTS, NAMES, max_length=5).tokens)
    scored = np.asarray(bank.label_log_probs(INPUTS, NAMES, *rows))

    @jax.jit
    def alone(model, inputs):
        return greedy(model, inputs, max_length=5).tokens, packed_log_probs(
            model, inputs, *map(jnp.asarray, rows), num_labels=4
        )

    expected = {name: alone(model, jnp.asarray(INPUTS)) for name, model in models.items()}
    for row, name in enumerate(NAMES):
        answers, log_probs = expected[name]
        np.testing.assert_array_equal(generated[row], answers[row])
        np.testing.assert_allclose(scored[row, :2], log_probs[row, :2], atol=5e-5)
