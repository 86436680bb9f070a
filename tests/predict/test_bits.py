"""An adapter whose run kept its base in few bits: what takes the same, what says that it does not, what is merged."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import jpeft
from jpeft.adapters.files import save_adapter
from jpeft.cli import main
from jpeft.data.task_file import TaskOfRun
from jpeft.model import t5_weights
from jpeft.model.bitsandbytes import to_file
from jpeft.model.quantized import Form, Quantization, quantization_of, quantize
from jpeft.peft.lora import Lora
from jpeft.predict.answer_source import AnswerSource
from tests.serve.adapters import make

TASK = TaskOfRun("{text}?", max_input_length=16, max_target_length=4, quantization="int8")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_checkpoint):
    """Made with the base in int8; not to be written to."""
    directory = tmp_path_factory.mktemp("adapter")
    made = make(t5_weights.load(tiny_checkpoint, quantization=Quantization("int8")), Lora.official(rank=2), seed=3)
    save_adapter(made.model, made.method, made.sites, directory, base_name=str(tiny_checkpoint))
    TASK.write(directory)
    return directory


def test_load_keeps_a_base_as_it_is_asked_to(tiny_checkpoint):
    assert quantization_of(jpeft.load(tiny_checkpoint)[0]) is None
    assert quantization_of(jpeft.load(tiny_checkpoint, quantization="int8,wo")[0]) == "int8,wo"
    with pytest.raises(jpeft.UserError, match="expected one of auto, none, int8, nf4"):
        jpeft.load(tiny_checkpoint, quantization="fp4")
    with pytest.raises(jpeft.UserError, match="neither a model's name nor an adapter"):
        jpeft.load()


def test_load_takes_the_base_of_an_adapter_as_its_run_had_it_and_warns_of_other_bits(adapter, tiny_checkpoint):
    model, _ = jpeft.load(adapter=adapter)
    assert quantization_of(model) == "int8" and len(jpeft.api.attached_at(model)) == 6
    with pytest.warns(UserWarning, match="the adapter was tuned with its base in int8, and answers with it wide"):
        wide, _ = jpeft.load(tiny_checkpoint, adapter=adapter, quantization="none")
    assert quantization_of(wide) is None
    with pytest.warns(UserWarning, match="the adapter was tuned with its base in int8, and answers with it wide"):
        jpeft.load_adapter(adapter, jpeft.load(tiny_checkpoint)[0])
    jpeft.load_adapter(adapter, jpeft.load(tiny_checkpoint, quantization="int8")[0])


@pytest.mark.parametrize(
    ("flags", "says"), [([], False), pytest.param(["--quantization", "none"], True, marks=pytest.mark.slow)]
)
def test_predict_and_evaluate_say_where_the_base_is_in_other_bits(flags, says, adapter, tmp_path, capsys):
    line = "the adapter was tuned with its base in int8, and answers with it wide: answers may differ by rounding"
    assert main(["predict", "--adapter", str(adapter), "goal", *flags]) == 0
    assert (line in capsys.readouterr().err) == says
    if says:
        (tmp_path / "rows.jsonl").write_text('{"text": "goal", "target": "league"}\n')
        call = ["evaluate", "--adapter", str(adapter), "--data", str(tmp_path / "rows.jsonl"), "--json", *flags]
        assert main(call) == 0
        out, err = capsys.readouterr()
        assert line in err and json.loads(out)["quantization"] is None


@pytest.mark.parametrize(("stored", "recorded"), [("nf4", "nf4,double"), ("nf4,double", "nf4"), (None, "nf4,wo")])
def test_files_in_nf4_have_the_double_quantization_that_they_have_whatever_a_run_recorded(stored, recorded, tmp_path):
    kernel, name = np.ones((64, 64), np.float32), "encoder.block.0.layer.0.SelfAttention.q.weight"
    tensors = {name: kernel}
    if stored is not None:
        form = Form("nf4", 64, 64, "in", stored.endswith("double"))
        tensors = to_file(name, form, quantize(kernel, form))
    save_file(tensors, tmp_path / "model.safetensors")
    source = AnswerSource("base", tmp_path, None, dataclasses.replace(TASK, quantization=recorded))
    assert source.kept(None) == (stored or recorded)
    assert [source.kept(asked) for asked in ("auto", recorded)] == ["auto", recorded]
    assert dataclasses.replace(source, task=TASK).kept(None) == "int8"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "kept", "says"),
    [
        ([], None, "tuned with its base in int8 and is merged into the wide weights; --quantization int8 merges into"),
        (["--quantization", "int8"], "int8", "merges into the numbers that int8 has for the base's maps"),
    ],
)
def test_what_is_merged_is_wide_and_not_rounded_again(flags, kept, says, adapter, tmp_path, capsys):
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged"), "--json", *flags]) == 0
    out, err = capsys.readouterr()
    assert says in err and json.loads(out)["quantization"] == kept
    task = TaskOfRun.read(tmp_path / "merged")
    assert task is not None and task.quantization == "auto"
    assert quantization_of(jpeft.load(tmp_path / "merged")[0]) is None
    assert ("dequantized from int8" in (tmp_path / "merged/README.md").read_text()) == (kept is not None)
