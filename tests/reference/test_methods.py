"""Methods beyond the paper's against Hugging Face PEFT: values, gradients, and files in both directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from jpeft.adapters import files
from jpeft.adapters.peft_layout import peft_tensors
from jpeft.errors import UserError
from jpeft.eval.loss import loss_sums
from jpeft.leaves import named_leaves
from jpeft.model.family import family_of, load_model
from jpeft.peft.attaching import attach, count, split
from jpeft.peft.dora import Dora
from jpeft.peft.ln import NormTuning
from jpeft.peft.merging import merge
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from jpeft.peft.vera import Vera, shared_matrices
from tests.golden import make_golden
from tests.peft.filled import filled

pytestmark = [
    pytest.mark.reference,
    # transformers and PEFT still ask under the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer is part:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied after merging:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not (load|save) vera_A and vera_B:UserWarning"),
    # PEFT's LayerNorm tuning reads widths of a norm that it does not need.
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*(LayerNorm|RMSNorm).* encountered:UserWarning"),
]
_IDS = dict(vocab_size=96, bos_token_id=1, eos_token_id=2, pad_token_id=0)
_DECODERS = {
    "llama": lambda: transformers.LlamaConfig(
        **_IDS,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        **_IDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        max_position_embeddings=64,
    ),
}


class Base:
    """A random torch model, the same model in jpeft, and rows for both."""

    def __init__(self, kind: str, directory):
        torch.manual_seed(3)
        self.kind, self.directory = kind, directory
        if kind == "t5":
            sizes, tied, _ = make_golden.ARCHITECTURES["untied_gated"]
            make_golden.save_model(make_golden.build_model(sizes, tied=tied, seed=2), directory)
        else:
            model = transformers.AutoModelForCausalLM.from_config(_DECODERS[kind](), attn_implementation="eager")
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    scale = 1.5 * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.2
                    is_norm = weight.ndim == 1 and not name.endswith("bias")
                    weight.copy_(torch.randn_like(weight) * scale + float(is_norm))
            model.save_pretrained(directory)
        self.ours = load_model(directory)
        draw = np.random.default_rng(1)
        rows = [[draw.integers(3, 96, n).astype(np.int32) for n in sizes] for sizes in ((9, 4, 7), (4, 2, 3))]
        family: Any = family_of(self.ours)
        batch = family.batch(*rows, (12, 4), batch_size=3, config=self.ours.config)
        self.batch, self.rows = jax.tree.map(jnp.asarray, batch), rows
        self.task = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"

    def theirs(self) -> Any:
        cls: Any = transformers.T5ForConditionalGeneration if self.kind == "t5" else transformers.AutoModelForCausalLM
        more = {} if self.kind == "t5" else {"attn_implementation": "eager"}
        return cls.from_pretrained(self.directory, **more).eval()

    def their_output(self, model: Any) -> Any:
        """Their mean loss per target token, and the logits at target tokens, `[tokens, vocab]`."""
        inputs, targets = self.rows
        ids, labels, mask = [], [], []
        for row, target in zip(inputs, targets, strict=True):
            if self.kind == "t5":
                ids.append(np.pad(row, (0, 12 - len(row))))
                labels.append(np.pad(target, (0, 4 - len(target)), constant_values=-100))
                mask.append(ids[-1] != 0)
            else:
                both = np.concatenate([row, target])
                ids.append(np.pad(both, (0, 16 - len(both))))
                labels.append(np.full(16, -100))
                labels[-1][len(row) : len(both)] = target
                mask.append(np.arange(16) < len(both))
        as_tensor = lambda rows: torch.from_numpy(np.stack(rows).astype(np.int64))
        output = model(input_ids=as_tensor(ids), attention_mask=as_tensor(mask), labels=as_tensor(labels))
        said = [output.logits[i][:-1][row[1:] >= 0] for i, row in enumerate(labels)]
        if self.kind == "t5":
            said = [output.logits[i][row >= 0] for i, row in enumerate(labels)]
        return output.loss, torch.cat(said)

    def our_logits(self, model: Any) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            logits = jax.jit(lambda model: model.logits(model.hidden_of(self.batch)))(model)
        return np.asarray(logits)[np.asarray(self.batch["decoder_loss_weights"]) > 0]

    def our_gradients(self, model: Any, method: Any) -> dict[str, np.ndarray]:
        """Gradients of the mean loss per target token, by PEFT's names and in its orientation."""
        graphdef, adapter, frozen = split(model)

        def mean_loss(adapter):
            total, tokens = loss_sums(nnx.merge(graphdef, adapter, frozen), self.batch)
            return total / tokens

        with jax.default_matmul_precision("highest"):
            gradient = jax.jit(jax.grad(mean_loss))(adapter)
        named = named_leaves(nnx.merge(graphdef, gradient, frozen), Adapter)
        return peft_tensors(model, method, {name: np.asarray(value) for name, value in named.items()})


@pytest.fixture(scope="module", params=["t5", "llama", "gpt_neo"])
def base(request, tmp_path_factory):
    return Base(request.param, tmp_path_factory.mktemp(request.param) / "base")


NORMS = {
    "t5": ["layer_norm", "final_layer_norm"],
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt_neo": ["ln_1", "ln_2", "ln_f"],
}
MAPS = {"t5": ["q", "v", "wo"], "llama": ["q_proj", "v_proj", "down_proj"], "gpt_neo": ["q_proj", "v_proj", "c_proj"]}
THEIRS = {
    "ln": lambda base: peft.LNTuningConfig(task_type=base.task, target_modules=NORMS[base.kind]),
    "vera": lambda base: peft.VeraConfig(
        task_type=base.task, r=9, projection_prng_key=5, target_modules=MAPS[base.kind]
    ),
    "vera without its matrices": lambda base: peft.VeraConfig(
        task_type=base.task, r=9, target_modules=MAPS[base.kind], save_projection=False
    ),
    "dora": lambda base: peft.LoraConfig(
        task_type=base.task, r=3, lora_alpha=5, use_dora=True, target_modules=MAPS[base.kind]
    ),
}
OURS = {"ln": NormTuning(), "dora": Dora(rank=3), "vera": Vera(rank=9, projection_seed=5)}


def by_file_name(model: Any) -> dict[str, np.ndarray]:
    """Gradients of the trainable parameters by their names in `adapter_model.safetensors`."""
    gradients = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            parts = [part for part in name.split(".") if part != "default"]
            name = ".".join(parts).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            gradients[name] = weight.grad.numpy()
    return gradients


@pytest.mark.parametrize("case", THEIRS)
def test_we_open_what_peft_saves_and_have_its_gradients(case, base, tmp_path):
    theirs: Any = peft.get_peft_model(base.theirs(), THEIRS[case](base)).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    theirs.save_pretrained(tmp_path)
    ours, method, _ = files.load_adapter(tmp_path, base.ours)
    loss, expected = base.their_output(theirs)
    logits = base.our_logits(ours)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-4)
    assert np.abs(logits - base.our_logits(base.ours)).max() > 0.05

    loss.backward()
    expected, found = by_file_name(theirs), base.our_gradients(ours, type(method))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4, err_msg=name)
    assert max(np.abs(value).max() for value in found.values()) > 1e-2


@pytest.mark.parametrize("case", OURS)
def test_peft_opens_what_we_save_and_transformers_what_we_merge(case, base, tmp_path, key):
    method = OURS[case]
    chosen = select(base.ours, method)
    tuned = filled(attach(base.ours, method, chosen, key), key)
    files.save_adapter(tuned, method, chosen, tmp_path, base_name=str(base.directory))
    theirs: Any = peft.PeftModel.from_pretrained(base.theirs(), tmp_path, is_trainable=True).eval()
    logits = base.our_logits(tuned)
    np.testing.assert_allclose(base.their_output(theirs)[1].detach().numpy(), logits, rtol=0, atol=1e-4)
    assert np.abs(logits - base.our_logits(base.ours)).max() > 0.05
    assert sum(weight.numel() for weight in theirs.parameters() if weight.requires_grad) == count(split(tuned)[1])
    np.testing.assert_allclose(base.our_logits(merge(tuned)), logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        base.their_output(theirs.merge_and_unload())[1].detach().numpy(), logits, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("seed", [0, 5, 2**31 + 3])
def test_the_matrices_of_a_seed_are_peft_s(seed):
    generator = torch.Generator().manual_seed(seed)
    theirs = [peft.tuners.vera.model._kaiming_init(shape, generator) for shape in ((256, 576), (1536, 256))]
    for ours, expected in zip(shared_matrices(seed, 256, 576, 1536), theirs, strict=True):
        np.testing.assert_allclose(ours, expected.T, rtol=0, atol=2e-8)
        assert (ours == expected.T.numpy()).mean() > 0.999


def test_other_matrices_than_those_of_the_seed_are_refused(base, tmp_path):
    theirs: Any = peft.get_peft_model(base.theirs(), THEIRS["vera"](base))
    theirs.base_model.vera_A["default"][0, 0] += 1.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vera_A is not what PEFT makes of projection_prng_key 5"):
        files.load_adapter(tmp_path, base.ours)
