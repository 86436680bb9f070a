"""A whole run of a decoder-only model, and uses of its adapter."""

import dataclasses
import json

import pytest

from jpeft.cli import main
from jpeft.config import Run
from jpeft.model.decoder_family import DECODER_FAMILY
from jpeft.run.display import Display
from jpeft.train.loop import execute
from tests.decoders import LLAMA, one_layer, random_decoder


@pytest.mark.slow
def test_a_run_its_answers_and_its_merged_model(toy_data, tiny_tokenizer, tmp_path, capsys):
    """Zero-shot test, training, scored labels, generated answers; `predict` with the adapter and the merged model."""
    model, workdir = tmp_path / "llama", tmp_path / "run"
    DECODER_FAMILY.save(random_decoder(one_layer(dataclasses.replace(LLAMA, max_positions=2048))), model)
    (model / "tokenizer.json").write_bytes((tiny_tokenizer / "tokenizer.json").read_bytes())
    run = Run.from_config(
        {
            "model": {"name": str(model)},
            "method": {"name": "lora"},
            "data": {"task": "agnews", "path": str(toy_data), "max_train": 48, "max_target_length": 8},
            "train": {"max_epochs": 2, "batch_size": 8, "accumulation_steps": 1, "learning_rate": {"warmup": 0.03}},
            "eval": {"batch_size": 8, "answer": "score", "zero_shot": True},
        }
    )
    result = execute(run, workdir, display=Display(quiet=True))
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert result["zero_shot"]["accuracy"] >= 0 and "agreement_with_generation" in result["metrics"]
    answers = {}
    for name, flags in {"run": ["--adapter", str(workdir)], "merged": ["--model", str(tmp_path / "merged")]}.items():
        if name == "merged":
            assert main(["merge", str(workdir), "--out", str(tmp_path / "merged")]) == 0
            capsys.readouterr()
        assert main(["predict", *flags, "striker goal coach final", "bank profit merger"]) == 0
        answers[name] = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(answers["run"]) == 2
    for one, other in zip(answers["run"], answers["merged"], strict=True):
        assert one["prediction"] == other["prediction"] and set(one["probabilities"]) == set(other["probabilities"])
