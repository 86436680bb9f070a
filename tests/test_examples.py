"""What the README and `examples/` show runs as it stands there."""

import re
import runpy
from pathlib import Path

import jax
import pytest

import jpeft
from jpeft.peft.methods import METHODS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def methods_as_they_were():
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("custom_method", r"73 trainable parameters; the loss went from 1\.\d+ to 0\.\d+"),
        pytest.param(
            "custom_module",
            r"saved, loaded and merged: the largest difference is \d\.\de-0[5-9]",
            marks=pytest.mark.slow,
        ),
        ("custom_metric", r"0\.333 begin with the right word"),
        pytest.param("two_adapters", r"first .*\nsecond .*\nthe base .*\n", marks=pytest.mark.slow),
    ],
)
def test_an_example_runs(name, says, capsys):
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert re.search(says, capsys.readouterr().out)


def test_the_first_lines_of_the_readme_run():
    (lines,) = re.findall(r"```python\n(import jpeft\n.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    names: dict = {}
    exec(lines, names)
    config = names["model"].config
    attentions, heads = config.num_layers + 2 * config.num_decoder_layers, config.num_heads * config.d_kv
    vectors = config.d_model + heads  # the paper's reading has two beside the two matrices
    assert jpeft.count(names["adapter"]) == attentions * 2 * (8 + 1) * vectors
    assert not jax.tree.leaves(jpeft.split(names["model"])[1])


def test_everything_that_is_offered_is_there_and_said():
    for name in jpeft.__all__:
        assert getattr(jpeft, name).__doc__ or name in ("__version__", "METHODS"), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jpeft.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:2 of 2 answers reached max_output_length, 4 tokens, before their end")
def test_a_model_is_loaded_tuned_and_asked_by_the_public_functions(tiny_checkpoint):
    model, tokenizer = jpeft.load(tiny_checkpoint)
    tuned = jpeft.attach(model, jpeft.Ia3())
    texts = ["coach goal season", "shares profit market"]
    answers = jpeft.generate(tuned, tokenizer, texts, max_output_length=4)
    assert answers == jpeft.generate(model, tokenizer, texts, max_output_length=4)  # nothing is learned yet
    right = [answers[0], answers[1] + " and more"]
    assert jpeft.evaluate(tuned, tokenizer, texts, right, metric="accuracy", max_output_length=4) == 0.5
    with pytest.raises(jpeft.UserError, match="there is no metric 'acuracy'"):
        jpeft.evaluate(tuned, tokenizer, texts, right, metric="acuracy")
