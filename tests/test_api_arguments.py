"""Arguments of another kind than the functions of `import jpeft` take are one line, and no traceback of JAX's.

In a process of its own, since in this one types are checked as they are annotated, before the functions see them.
"""

import json
import subprocess
import sys

import pytest

_CALLS = r"""
import json, re, sys, tempfile, warnings
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
import jpeft

class Net(nnx.Module):
    def __init__(self): self.lin, self.out = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    def __call__(self, x): return self.out(self.lin(x))

net, lora, x = Net(), jpeft.Lora.official(rank=2), np.ones((3, 4), np.float32)
tuned, mean = jpeft.attach(net, lora, where="lin"), lambda model, x: jnp.mean(model(x) ** 2)
aside, allocated = tempfile.mkdtemp(), jpeft.AdaLora(rank=1)
open(aside + "/file", "w").close()

class Small(Net): hidden_of, config = None, None
small = Small(), "tok"

def fit(**others): return jpeft.fit(tuned, [x] * 2, **{"loss": mean, **others})

CALLS = {
    "pattern": lambda: jpeft.attach(net, lora, where=re.compile("lin")),
    "bytes": lambda: jpeft.attach(net, lora, where=b"lin"),
    "number": lambda: jpeft.attach(net, lora, where=5),
    "no module": lambda: jpeft.attach(5, lora, where="lin"),
    "seed": lambda: jpeft.attach(net, lora, where="lin", seed="a"),
    "class saved": lambda: jpeft.save(tuned, jpeft.Lora, aside + "/x"),
    "class fitted": lambda: fit(method=jpeft.Lora),
    "no loss": lambda: fit(loss=None),
    "loss of rows": lambda: fit(loss=lambda model, x: jnp.mean(model(x), axis=-1)),
    "whole loss": lambda: fit(loss=lambda model, x: 3),
    "loss and more": lambda: fit(loss=lambda model, x: (mean(model, x), 1)),
    "no number": lambda: fit(loss=lambda model, x: None),
    "texts of a net": lambda: jpeft.text_batches(net, None, ["a"], ["b"]),
    "length": lambda: jpeft.text_batches(net, None, ["a"], ["b"], max_target_length=1),
    "batch_size": lambda: jpeft.text_batches(net, None, ["a"], ["b"], batch_size=True),
    "maker of an optimizer": lambda: fit(optimizer=optax.adam),
    "no batches at all": lambda: jpeft.fit(tuned, 3, mean),
    "loss and batches swapped": lambda: jpeft.fit(tuned, mean, [x]),
    "no function": lambda: fit(loss=3),
    "no path": lambda: jpeft.load_adapter(3, net),
    "float64": lambda: jpeft.load("mini", dtype="float64"),
    "one batch": lambda: jpeft.fit(tuned, {"x": x}, mean),
    "total_steps": lambda: jpeft.fit(
        jpeft.attach(net, allocated, where="lin"), [x], mean, method=allocated, total_steps="9"),
    "onto a file": lambda: jpeft.save(tuned, lora, aside + "/file"),
    "below a file": lambda: jpeft.save(tuned, lora, aside + "/file/x"),
    "swapped": lambda: jpeft.load_adapter(net, aside),
    "no attention": lambda: jpeft.attach(net, jpeft.Prefix(), where="lin"),
    "negative": lambda: fit(learning_rate=np.float32(-1e-2)),
    "negative of JAX's": lambda: fit(learning_rate=jnp.float32(-1e-2)),
    "zero": lambda: fit(learning_rate=np.float32(0)),
    "NaN": lambda: fit(learning_rate=np.float64("nan")),
    "switch": lambda: fit(learning_rate=True),
    "text": lambda: fit(learning_rate="0.1"),
    "list": lambda: fit(learning_rate=[1.0]),
    "rank text": lambda: jpeft.Lora.official(rank="8"),
    "rank switch": lambda: jpeft.Lora.official(rank=True),
    "rank fraction": lambda: jpeft.Dora(rank=1.5),
    "rank of JAX's": lambda: jpeft.Lora.official(rank=jnp.int32(4)),
    "alpha": lambda: jpeft.Lora.official(alpha=None),
    "width": lambda: jpeft.BottleneckAdapter(bottleneck=2.0),
    "two_sided": lambda: jpeft.Ia3(two_sided=1),
    "int8 as a dtype": lambda: jpeft.load("mini", dtype="int8"),
    "no dtype": lambda: jpeft.load("mini", dtype="bloat16"),
    "sites of text": lambda: jpeft.sites("x"),
    "text merged": lambda: jpeft.merge("x"),
    "array as a check": lambda: jpeft.merge(tuned, check=x),
    "text split": lambda: jpeft.split("x"),
    "text generates": lambda: jpeft.generate("x", None, ["a"]),
    "no tokenizer": lambda: jpeft.generate(*small, ["a"]),
    "set of sites": lambda: jpeft.attach(net, lora, where={jpeft.sites(net)[1]}),
    "seed below 0": lambda: jpeft.attach(net, lora, where="lin", seed=-1),
    "large seed": lambda: jpeft.attach(net, lora, where="lin", seed=2**64),
    "seed of orders": lambda: jpeft.text_batches(*small, ["a"], ["b"], seed=2**32),
    "no batches": lambda: jpeft.fit(tuned, iter([]), mean),
    "texts in a batch": lambda: jpeft.fit(tuned, [{"x": x, "name": "a"}], lambda model, batch: mean(model, batch["x"])),
    "texts of numpy's": lambda: jpeft.fit(tuned, [np.array(["a"])], mean),
    "large number": lambda: jpeft.fit(tuned, [(x, 2**70)], lambda model, batch: mean(model, batch[0]) * batch[1]),
    "numbers in a batch": lambda: jpeft.fit(
        tuned, [{"x": x, "by": 0.5, "on": True}] * 2, lambda model, batch: batch["by"] * mean(model, batch["x"])),
    "batches of other dtypes": lambda: jpeft.fit(tuned, [x, x.astype(np.int32), x.astype("bfloat16")], mean),
    "batches of other structure": lambda: jpeft.fit(
        tuned, [{"x": x}, {"x": x, "y": x}, (x,)], lambda model, batch: mean(model, jax.tree.leaves(batch)[0])),
    "switch of numpy's": lambda: jpeft.Ia3(two_sided=np.True_),
    "one site": lambda: jpeft.attach(net, lora, where=jpeft.sites(net)[1]),
    "rate of numpy's": lambda: fit(learning_rate=np.float32(1e-2)),
    "rank of numpy's": lambda: jpeft.save(
        jpeft.attach(net, jpeft.Lora.official(rank=np.int64(2), alpha=np.float32(3)), where="lin"),
        jpeft.Lora.official(rank=np.int64(2), alpha=np.float32(3)), aside + "/numpy"),
}
warnings.simplefilter("ignore")
said = {}
for name, call in CALLS.items():
    try:
        call()
        said[name] = "done"
    except (jpeft.UserError, jpeft.RunFailed) as error:
        said[name] = str(error)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
SAID = {
    "pattern": "where is re.compile('lin'); expected a regular expression as text, a Selection",
    "bytes": "where is b'lin'; expected a regular expression as text",
    "number": "where is 5; expected",
    "no module": "model is 5; expected a flax.nnx.Module",
    "seed": "seed is 'a'; expected a whole number",
    "class saved": "expected a method such as jpeft.Lora(rank=8)",
    "class fitted": "expected a method such as jpeft.Lora(rank=8)",
    "no loss": "Net is no model of jpeft's, whose loss fit knows; give a loss of your own",
    "loss of rows": "the loss gives float32[3]; expected one floating-point number",
    "whole loss": "the loss gives int32[]; expected one floating-point number",
    "loss and more": "the loss gives tuple; expected one number",
    "no number": "the loss gives NoneType; expected one number",
    "texts of a net": "model is a Net; expected a model of jpeft's, such as jpeft.load gives",
    "length": "max_target_length is 1; expected a whole number, 2 or more",
    "batch_size": "batch_size is True; expected a whole number",
    "maker of an optimizer": "expected one of optax's, such as optax.adamw(1e-3)",
    "no batches at all": "batches is 3; expected a list of batches, one for each step",
    "loss and batches swapped": "batches is <function",
    "no function": "loss is 3; expected a function of the model and a batch",
    "no path": "directory is 3; expected a path",
    "float64": "dtype is float64, which JAX has only where jax_enable_x64 is set",
    "one batch": "batches is one batch",
    "total_steps": "total_steps is '9'; expected a whole number",
    "onto a file": "cannot be written (File exists)",
    "below a file": "cannot be written (Not a directory)",
    "swapped": "model is '/",
    "no attention": "prefix acts on sites of the kind attention, and the model has none",
    "negative": "learning_rate is np.float32(-0.01); expected a number above 0",
    "negative of JAX's": "learning_rate is ",
    "zero": "learning_rate is np.float32(0.0); expected a number above 0",
    "NaN": "learning_rate is np.float64(nan); expected",
    "switch": "learning_rate is True; expected",
    "text": "learning_rate is '0.1'; expected",
    "list": "learning_rate is [1.0]; expected",
    "rank text": "method.rank is '8'; expected a whole number",
    "rank switch": "method.rank is True; expected a whole number",
    "rank fraction": "method.rank is 1.5; expected a whole number",
    "rank of JAX's": "method.rank is ",
    "alpha": "method.alpha is None; expected a number",
    "width": "method.bottleneck is 2.0; expected a whole number",
    "two_sided": "two_sided is 1; expected True or False",
    "int8 as a dtype": "dtype is 'int8'; expected a floating-point dtype, such as 'bfloat16'",
    "no dtype": "dtype is 'bloat16'; expected a floating-point dtype",
    "sites of text": "model is 'x'; expected a flax.nnx.Module",
    "text merged": "adapted is 'x'; expected a flax.nnx.Module",
    "array as a check": "check is ndarray; expected a function, such as lambda model: model(x)",
    "text split": "model is 'x'; expected a flax.nnx.Module",
    "text generates": "model is 'x'; expected a model of jpeft's",
    "no tokenizer": "tokenizer is 'tok'; expected that of jpeft.load",
    "set of sites": "done",
    "seed below 0": "seed is -1; expected a whole number from 0 to 4,294,967,295",
    "large seed": "seed is 18446744073709551616; expected a whole number from 0 to 4,294,967,295",
    "seed of orders": "seed is 4294967296; expected a whole number from 0 to 4,294,967,295",
    "no batches": "batches gave none, so nothing was trained; an iterator that was read before gives none again",
    "texts in a batch": "a batch holds 'a'; expected a tree of arrays",
    "texts of numpy's": "a batch holds ",
    "large number": "a batch holds 1180591620717411303424; expected a tree of arrays",
    "numbers in a batch": "done",
    "batches of other dtypes": "done",
    "batches of other structure": "done",
    "switch of numpy's": "done",
    "one site": "done",
    "rate of numpy's": "done",
    "rank of numpy's": "done",
}


@pytest.fixture(scope="module")
def said():
    ran = subprocess.run([sys.executable, "-c", _CALLS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("call", SAID)
def test_each_is_said_in_a_line(call, said):
    assert SAID[call] in said[call] and "\n" not in said[call]


def test_each_is_called(said):
    assert set(said) == set(SAID)
