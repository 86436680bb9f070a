"""`jpeft export` and `jpeft import`: the files, the output and the errors."""

import json
import shutil

import jax
import numpy as np
import pytest

from jpeft.adapters.files import load_adapter, save_adapter
from jpeft.cli import main
from jpeft.config import Run
from jpeft.data.task_file import TaskOfRun
from jpeft.leaves import named_leaves
from jpeft.model import t5_weights
from jpeft.model.weight_files import model_fingerprint
from jpeft.peft.attaching import attach
from jpeft.peft.bitfit import BitFit
from jpeft.peft.ia3 import Ia3
from jpeft.peft.lora import Lora
from jpeft.peft.prompt import Prompt
from jpeft.peft.selection import select
from jpeft.peft.variables import Adapter
from tests.peft.filled import filled

RESULT = {
    "task": "agnews",
    "metrics": {"accuracy": 0.8125},
    "zero_shot": {"accuracy": 0.25},
    "train_examples": 100,
    "device": "a | b\n# c",
}


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """Creates those parts of a finished run's directory that exporting reads."""

    def make(method):
        key, model = jax.random.key(5), t5_weights.load(tiny_checkpoint)
        chosen = select(model, method)
        adapted = filled(attach(model, method, chosen, key), key)
        save_adapter(adapted, method, chosen, tmp_path / "run/adapter", base_name=str(tiny_checkpoint))
        (tmp_path / "run/result.json").write_text(json.dumps(RESULT))
        return tmp_path / "run"

    return make


def same_adapter(first, second, base) -> None:
    model = t5_weights.load(base)
    one, other = (named_leaves(load_adapter(directory, model)[0], Adapter) for directory in (first, second))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)


@pytest.mark.parametrize("method", [Lora.official(rank=3), Ia3.official(), Prompt(prompt_length=4)])
def test_what_peft_knows_is_exported_in_its_layout_with_a_card(method, run, tiny_checkpoint, tmp_path, capsys):
    directory, out = run(method), tmp_path / "out"
    flags = ["--base-name", "google/flan-t5-tiny"]
    assert main(["export", str(directory), "--out", str(out), *flags]) == 0
    assert "in Hugging Face PEFT's layout" in capsys.readouterr().out
    same_adapter(directory / "adapter", out, tiny_checkpoint)
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "google/flan-t5-tiny"
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: google/flan-t5-tiny\n")
    for line in ("| accuracy | 0.8125 |", "| zero-shot accuracy | 0.2500 |", "| training rows | 100 |"):
        assert line in card.splitlines()
    assert "| device | a \\| b # c |" in card.splitlines()  # values are escaped for the table
    assert 'peft.PeftModel.from_pretrained(model, "DIR")' in card


def test_the_card_of_an_adapter_of_a_rounded_base_says_so_and_how_to_round_alike(run, tmp_path, capsys):
    for method, out in ((Lora.official(rank=3), tmp_path / "out"), (Lora(), tmp_path / "scaled")):
        directory = run(method)
        TaskOfRun("{text}?", quantization="nf4,double").write(directory / "adapter")
        assert main(["export", str(directory), "--out", str(out)]) == 0
        assert "note     the adapter was tuned with its base in nf4,double, and" in capsys.readouterr().out
        card = (out / "README.md").read_text()
        assert "| base kept in | nf4,double |" in card and "Its run quantized the base to nf4,double" in card
        assert "--config.model.quantization=nf4" in card and "--config.model.double_quantization=True" in card
        shutil.rmtree(directory)
    assert "jpeft merge DIR --quantization nf4,double --out MERGED" in card
    card = (tmp_path / "out/README.md").read_text()
    assert 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)' in card
    assert "quantization_config=bits)" in card


@pytest.mark.parametrize(
    ("method", "lacks", "route"),
    [
        (Lora(), "the scaling vectors of the paper's LoRA", "jpeft merge"),
        (Ia3(), "the second vector of the paper's two-sided (IA)³", "jpeft merge"),
        (BitFit(), "biases", "nor can it be merged into a T5"),
    ],
)
def test_what_peft_can_not_hold_is_said_with_the_way_out(method, lacks, route, run, tiny_checkpoint, tmp_path, capsys):
    directory, out = run(method), tmp_path / "out"
    assert main(["export", str(directory / "adapter"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "jpeft's own layout" in said and lacks in said and route in said
    same_adapter(directory / "adapter", out, tiny_checkpoint)
    card = (out / "README.md").read_text()
    assert "library_name: jpeft" in card and lacks in card and "PeftModel" not in card
    assert ("jpeft merge DIR" in card) == (method.unmergeable is None)


def test_an_export_is_checked_against_its_base_and_overwrites_nothing(run, tiny_checkpoint, tmp_path, capsys):
    directory = run(Lora.official())
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "wider").mkdir()
    (tmp_path / "wider/config.json").write_text(json.dumps(config | {"d_model": 32}))
    assert main(["export", str(directory), "--model", str(tmp_path / "wider"), "--out", str(tmp_path / "out")]) == 2
    assert "does not fit this base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["export", str(directory), "--out", str(directory)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_adapter_that_names_no_base_asks_for_one(run, tmp_path, capsys):
    directory = run(Lora.official())
    file = directory / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    assert main(["export", str(directory), "--out", str(tmp_path / "out")]) == 2
    assert "give --model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "import"])
def test_another_base_than_the_runs_is_named_with_the_results(command, run, tiny_checkpoint, tmp_path, capsys):
    """As found: the card listed the results of one base under another of the same shapes, and nothing was said."""
    directory, other, out = run(Lora.official()), tmp_path / "other", tmp_path / "an out"
    shutil.copytree(tiny_checkpoint, other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    TaskOfRun(template="{text}", base=model_fingerprint(tiny_checkpoint)).write(directory / "adapter")
    note = "the adapter was tuned on a base of other files: unless these hold the same weights, it fits by shapes alone"
    assert main([command, str(directory / "adapter"), "--model", str(other), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert note in said.out + said.err and note in (out / "README.md").read_text()
    if command == "import":
        assert f"jpeft merge '{out}' --out MERGED" in said.out
    shutil.rmtree(out)
    assert main([command, str(directory / "adapter"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "other files" not in said.out + said.err and "other files" not in (out / "README.md").read_text()


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_setting_that_is_passed_over_is_said(command, run, tmp_path, capsys):
    directory = run(Lora.official())
    file = directory / "adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"novelty": {"x": 1}}))
    assert main([command, str(directory), "--out", str(tmp_path / "out")]) == 0
    assert "settings that jpeft does not know were passed over: novelty\n" in capsys.readouterr().err


def test_import_rewrites_what_it_found_and_gives_the_flags_that_train_on_from_it(
    run, tiny_checkpoint, tmp_path, capsys
):
    adapter, out = run(Lora.official(rank=3, alpha=6.0)) / "adapter", tmp_path / "out"
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"v": 12}, "base_model_name_or_path": "/somewhere/else", "novelty": {"x": 1}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert main(["import", str(adapter), "--model", str(tiny_checkpoint), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "LoRA of rank 3, alpha 6, at q, v of 2 layers: 432 parameters" in said
    assert "scales that differ between modules were multiplied into B" in said and "passed over: novelty" in said
    same_adapter(adapter, out, tiny_checkpoint)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_checkpoint)

    flags = [flag for line in said.splitlines() for flag in line.split() if flag.startswith("--config.method.")]
    sections: dict = {"method": dict(flag.removeprefix("--config.method.").split("=") for flag in flags)}
    assert sections["method"].pop("from_adapter") == str(out)
    sections["method"] |= {"rank": int(sections["method"]["rank"]), "alpha": float(sections["method"]["alpha"])}
    assert Run.from_config(sections).build_method() == load_adapter(out, t5_weights.load(tiny_checkpoint))[1]


def test_import_prints_json_and_refuses_what_is_ours_already(run, tiny_checkpoint, tmp_path, capsys):
    adapter = run(Ia3.official()) / "adapter"
    flags = ["--model", str(tiny_checkpoint), "--json"]
    assert main(["import", str(adapter), *flags, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "ia3" and found["options"] == {"two_sided": False} and found["parameters"] == 96
    assert len(found["sites"]) == 3 * 2 + 2 and found["notes"] == []
    ours = tmp_path / "ours"
    model = t5_weights.load(tiny_checkpoint)
    chosen = select(model, Lora())
    save_adapter(attach(model, Lora(), chosen, jax.random.key(0)), Lora(), chosen, ours, base_name="tiny")
    assert main(["import", str(ours), *flags, "--out", str(tmp_path / "other")]) == 2
    assert "nothing to import" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "import", "merge", "predict"])
def test_a_base_that_moved_is_named_with_the_flag_that_gives_another(command, run, tmp_path, capsys):
    peft_adapter = run(Lora.official()) / "adapter"
    gone = str(tmp_path / "gone")
    file = peft_adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": gone}))
    where = ["--adapter", str(peft_adapter), "text"] if command == "predict" else [str(peft_adapter), "--out", gone]
    assert main([command, *where]) == 2
    said = capsys.readouterr().err
    assert f"the base that {peft_adapter} names, '{gone}' is no directory here" in said
    assert "give --model a local directory" in said and "config.model" not in said
    assert main([command, *where, "--model", gone]) == 2
    assert f"--model '{gone}' is no directory here" in capsys.readouterr().err
