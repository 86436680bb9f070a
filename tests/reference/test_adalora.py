"""AdaLoRA against PEFT: forward pass and gradients, files in both directions, and the rank allocator."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import nnx

from jpeft.adapters import files
from jpeft.adapters.peft_layout import peft_tensors
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.peft.adalora import AdaLora
from jpeft.peft.attaching import attach, split
from jpeft.peft.selection import Selection, select
from jpeft.peft.variables import Adapter
from tests.golden import make_golden
from tests.peft.filled import filled
from tests.reference.test_peft import our_answers, our_batch, our_logits, their_answers, their_logits, torch_base

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT warns of a layer whose triplets are all pruned.
    pytest.mark.filterwarnings("ignore:Adapter 'default'.* LoRA tensor"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part:UserWarning"),
]
METHOD = AdaLora(rank=2, initial_rank=4, alpha=5.0, allocate_every=3, initial_fraction=0.2, final_fraction=0.25)
TARGETS = ["q", "v", "wo"]


def config():
    return peft.AdaLoraConfig(
        task_type="SEQ_2_SEQ_LM",
        target_modules=TARGETS,
        init_r=4,
        target_r=2,
        lora_alpha=5,
        orth_reg_weight=0.1,
        tinit=4,
        tfinal=5,
        deltaT=3,
        total_step=20,
    )


@pytest.fixture(params=["tied_relu", "untied_gated"])
def base(request, tmp_path):
    sizes, tied, _ = make_golden.ARCHITECTURES[request.param]
    make_golden.save_model(make_golden.build_model(sizes, tied=tied, seed=2), tmp_path / "base")
    return tmp_path / "base", make_golden.make_batch(sizes["vocab_size"], seed=2)


def their_parameters(theirs) -> dict:
    """PEFT's parameters by their names in the file."""
    return {n.replace(".default", ""): p for n, p in theirs.named_parameters() if "lora_" in n}


def by_their_names(model, graphdef, tree, frozen):
    named = {name: np.asarray(v) for name, v in named_leaves(nnx.merge(graphdef, tree, frozen), Adapter).items()}
    return peft_tensors(model, AdaLora, named)


def test_we_open_what_peft_saves_and_its_gradients_are_ours(base, tmp_path):
    """Including the orthogonality penalty, which PEFT adds to its loss."""
    directory, batch = base
    theirs = peft.get_peft_model(torch_base(directory), config())
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in their_parameters(theirs).values():
            weight.copy_(0.3 * torch.randn_like(weight))
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model = t5_weights.load(directory)
    ours, method, _ = files.load_adapter(tmp_path / "theirs", model)
    assert (method.rank, method.width, method.alpha, method.orthogonality) == (2, 4, 5.0, 0.1)
    np.testing.assert_allclose(our_logits(ours, batch), their_logits(theirs, batch), rtol=0, atol=1e-4)
    assert np.abs(our_logits(ours, batch) - our_logits(model, batch)).max() > 0.1
    np.testing.assert_array_equal(our_answers(ours, batch), their_answers(theirs, batch))

    graphdef, adapter, frozen = split(ours)

    def loss(adapter):
        total, tokens = loss_sums(nnx.merge(graphdef, adapter, frozen), our_batch(batch))
        return total / tokens + method.penalty(adapter)

    with jax.default_matmul_precision("highest"):
        found = by_their_names(ours, graphdef, jax.jit(jax.grad(loss))(adapter), frozen)
    make_golden.run(theirs, batch).loss.backward()
    expected = {n: p.grad.numpy() for n, p in their_parameters(theirs).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4, err_msg=name)


def test_peft_opens_what_we_save(base, tmp_path, key):
    directory, batch = base
    model = t5_weights.load(directory)
    chosen = select(model, METHOD, Selection(names=TARGETS))
    tuned = filled(attach(model, METHOD, chosen, key), key)
    files.save_adapter(tuned, METHOD, chosen, tmp_path / "ours", base_name=str(directory))
    # PEFT fails on labels if the adapter is loaded for inference.
    theirs = peft.PeftModel.from_pretrained(torch_base(directory), tmp_path / "ours", is_trainable=True).eval()
    np.testing.assert_allclose(our_logits(tuned, batch), their_logits(theirs, batch), rtol=0, atol=1e-4)


def test_the_budget_is_given_out_as_by_peft_and_read_from_its_file(base, tmp_path, key):
    """Twenty steps with the same values and gradients on both sides, then PEFT's file of the remaining ranks."""
    directory, batch = base
    theirs = peft.get_peft_model(torch_base(directory), config())
    model = t5_weights.load(directory)
    chosen = select(model, METHOD, Selection(names=TARGETS))
    graphdef, adapter, frozen = split(attach(model, METHOD, chosen, key))
    step, memory, draw = jax.jit(METHOD.after_step), METHOD.first_memory(adapter), np.random.default_rng(1)
    remaining = []
    for now in range(1, 21):
        drawn, grads = (
            jax.tree.map(lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), jnp.float32), adapter)
            for _ in range(2)
        )
        values, gradients = (by_their_names(model, graphdef, tree, frozen) for tree in (drawn, grads))
        for name, weight in their_parameters(theirs).items():
            weight.data = torch.tensor(np.array(values[name]))
            weight.grad = torch.tensor(np.array(gradients[name]))
        theirs.base_model.update_and_allocate(now)
        after, memory = step(drawn, memory, drawn, grads, jnp.int32(now - 1), jnp.int32(20))
        found = by_their_names(model, graphdef, after, frozen)
        for name, weight in their_parameters(theirs).items():
            np.testing.assert_array_equal(found[name] == 0, weight.detach().numpy() == 0, err_msg=f"{now} {name}")
        remaining.append(sum(int(np.count_nonzero(v)) for n, v in found.items() if n.endswith("lora_E")))
    first, last = 4 * len(chosen), 2 * len(chosen)
    assert remaining[3] == first and remaining[-6:] == [last] * 6 and first > remaining[8] > last
    with torch.no_grad():  # values like those of a trained adapter
        for weight in their_parameters(theirs).values():
            weight.mul_(0.3)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    assert "were padded with zeros to 4" in files.open_adapter(tmp_path / "theirs", model).notes[0]
    ours = files.load_adapter(tmp_path / "theirs", model)[0]
    np.testing.assert_allclose(our_logits(ours, batch), their_logits(theirs, batch), rtol=0, atol=1e-4)
