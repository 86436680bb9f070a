"""The demo's cell: an adapter on `mini` learns what `mini` alone can not."""

import json
from pathlib import Path

import pytest

from jpeft.cli import run_experiment

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_learns(tmp_path, capsys):
    """About three minutes. The generated rows are balanced: a guess is right once in four times."""
    arguments = ["main.py", f"--config={ROOT / 'configs/mini.py'}:lora_agnews_medium", "--config.data.source=sample"]
    assert run_experiment([*arguments, f"--workdir={tmp_path / 'demo'}", "--quiet"]) == 0
    result = json.loads((tmp_path / "demo/result.json").read_text())
    assert result["source"] == "sample" and result["model"] == "mini"
    assert result["zero_shot"]["accuracy"] < 0.4
    assert result["metric"] > result["zero_shot"]["accuracy"] + 0.3
    assert result["metric"] > 0.7
    assert "next " in capsys.readouterr().out
