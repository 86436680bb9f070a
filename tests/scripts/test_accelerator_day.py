"""`scripts/accelerator_day.py`: failed and slow pieces are recorded, and the page shows the results that exist."""

import dataclasses
import json
import sys
import time

import numpy as np
import pytest

from jpeft.peft.methods import METHODS
from tests.conftest import of_devices
from tests.script import imported


@pytest.fixture(scope="module")
def script():
    with imported("accelerator_day") as module:
        yield module


def python(script, code: str, *, limit: float = 20.0, part: str = "laws", name: str = "a piece"):
    return script.Piece(part, name, limit, (sys.executable, "-c", code, "{out}"), script._read_json)


HALF = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{\"a\": 1}'); "


def test_what_ends_has_its_result(script):
    entry = script.run_piece(python(script, HALF), 20)
    assert (entry["status"], entry["result"]) == ("done", {"a": 1}) and "why" not in entry


def test_what_fails_is_an_entry_with_its_last_words_and_with_what_it_had(script):
    entry = script.run_piece(python(script, HALF + "raise ValueError('no such thing')"), 20)
    assert (entry["status"], entry["result"]) == ("failed", {"a": 1})
    assert entry["why"] == "ended with status 1: ValueError: no such thing"
    nothing = script.run_piece(python(script, "pass"), 20)  # it exits with 0 but writes no result
    assert nothing["status"] == "failed" and "result" not in nothing


def test_what_is_too_slow_is_ended_with_all_that_it_started(script, tmp_path):
    mark = tmp_path / "mark"
    late = f"import time, pathlib; time.sleep(0.8); pathlib.Path({str(mark)!r}).touch()"
    slow = f"import subprocess; subprocess.run([sys.executable, '-c', {late!r}])"
    entry = script.run_piece(python(script, HALF + slow, limit=0.5), 20)
    assert entry["status"] == "timed out" and entry["seconds"] < 10
    script.time.sleep(0.9)
    assert not mark.exists()


def test_want_of_memory_is_told_before_anything_else(script):
    said = (
        "2026 W bfc_allocator.cc: it is much\nXlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory\nRuntimeError: cleanup"
    )
    assert script.telling(said, 1) == "ended with status 1: XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert script.telling("", -9) == "ended by SIGKILL"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", None),  # less than half as fast as an A10
        ("NVIDIA H100 PCIe", None),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_what_it_calls_itself(script, kind, name):
    device = script.device_of(kind)
    assert (device and device.name) == name


def test_each_method_and_size_is_run_on_both_sides_and_what_matters_most_comes_first(script):
    found = script.pieces(script.PARTS, ["large", "xl"], ["full", "lora", "ia3"], torch_device="cuda", tiny=False)
    names = [f"{piece.part} {piece.name}" for piece in found]
    gradients = [f"gradients {method}" for method in METHODS]
    assert names[: len(gradients)] == gradients
    names = names[len(gradients) :]
    assert names[:4] == ["parity golden files", "laws bfloat16", "speed large lora jpeft", "speed large lora torch"]
    assert names.index("cells mini") < names.index("speed large ia3 jpeft")
    assert [name for name in names if name.startswith("bits")] == [
        *("bits xl none", "bits xl int8", "bits xl nf4", "bits xxl nf4", "bits xxl none")
    ]
    assert "together small 8 runs" in names
    assert len(set(names)) == len(names) and sum(name.startswith("speed") for name in names) == 12
    alone = script.pieces(["speed"], ["xl"], ["lora"], torch_device=None, tiny=False)
    assert [piece.name for piece in alone] == ["xl lora jpeft"]


def test_a_leaf_that_is_wrong_is_found_among_others(script):
    right = {"a": np.ones(4), "b": {"c": np.full(9, 1e-3), "none": np.zeros(3)}}
    found = {"a": np.ones(4) * (1 + 1e-7), "b": {"c": np.full(9, 1e-3), "none": np.full(3, 1e-9)}}
    off, name = script.farthest(found, right)
    assert off < 1e-6  # negligible beside the largest leaf
    off, name = script.farthest({**found, "b": {**found["b"], "c": np.full(9, -1e-3)}}, right)
    assert off == pytest.approx(2 * 3e-3 / 0.1) and name == "b/c"  # relative to a twentieth of the largest norm
    with_loss = [{**tree, "loss": np.float32(1e6)} for tree in ({**found, "a": np.full(4, 0.8)}, right)]
    assert script.farthest(*with_loss) == (pytest.approx(0.2), "a")  # scalars set no scale
    off, name = script.farthest({**found, "a": np.full(4, 0.8)}, right)
    assert off == pytest.approx(0.2) and name == "a"
    off, name = script.farthest({**found, "a": np.array([1, 1, 1, np.nan])}, right)
    assert not off <= 1.0 and name == "a"


def test_untimed_pieces_run_at_once_and_all_end_with_a_day_that_is_told_to_stop(script, tmp_path, monkeypatch):
    known = {"kind": "cpu", "platform": "cpu", "count": 1, "versions": {}, "commit": None}
    known["torch"] = {"device": None, "why": "torch not installed"}
    device = python(script, f"import sys; open(sys.argv[1], 'w').write({json.dumps(known)!r})", part="device")
    meets = (  # waits for the other process: run one by one, both would time out
        "import pathlib, sys, time; own, other = (pathlib.Path(p) for p in sys.argv[2:]); own.touch();\n"
        "while not other.exists(): time.sleep(0.01)\n"
        "pathlib.Path(sys.argv[1]).write_text('{}')"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    pair = [python(script, meets, name=name) for name in ("first", "second")]
    pair = [
        dataclasses.replace(piece, command=(*piece.command, *paths))
        for piece, paths in zip(pair, ((a, b), (b, a)), strict=True)
    ]
    real = script.run_piece
    monkeypatch.setattr(script, "run_piece", lambda p, s: real(device if p.part == "device" else p, s))
    monkeypatch.setattr(script, "pieces", lambda *_, **__: pair)
    arguments = script.parse(["--jobs", "2", "--only", "laws", "--out", str(tmp_path / "out")])
    day = script.run_day(arguments, report=str)
    assert [entry["status"] for entry in day["parts"]["laws"].values()] == ["done", "done"]

    slow = [python(script, "import time; time.sleep(60)", name=name, limit=60) for name in ("slow", "slower")]
    quick = python(script, "import sys; open(sys.argv[1], 'w').write('{}')", name="quick")
    monkeypatch.setattr(script, "pieces", lambda *_, **__: [*slow, quick])
    monkeypatch.setattr(script, "_TOLD_TO_STOP", script.threading.Event())
    arguments = script.parse(["--jobs", "3", "--only", "laws", "--out", str(tmp_path / "out")])

    def told(line: str) -> None:
        if "quick" in line:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        script.run_day(arguments, report=told)
    assert time.monotonic() - started < 30 and not script._AT_WORK
    [file] = (tmp_path / "out").glob("*.json")
    told_of = json.loads(file.read_text())["parts"]["laws"]
    assert [told_of[name]["status"] for name in ("quick", "slow", "slower")] == ["done", "not run", "not run"]


def made_up(script):
    """A made-up day on an H100 with an entry of every kind."""
    peaks = script.device_of("NVIDIA H100 80GB HBM3")

    def side(seconds: float, peak: float):
        timed = {"first_seconds": 9.0, "seconds": [seconds] * 3, "peak_bytes": peak, "peak_bytes_before": peak - 1e9}
        works = {work: dict(timed) for work in script.WORKS}
        works["validation"]["peak_bytes_before"] = peak
        return {"status": "done", "seconds": 30.0, "result": script.shares(works, "xl", "lora", peaks)}

    why = {"status": "failed", "seconds": 8.0, "why": "ended with status 1: Out of memory"}
    cell = {
        **{
            "method": "lora",
            "task": "agnews",
            "metric_name": "accuracy",
            "metric": 0.71,
            "zero_shot": {"accuracy": 0.25},
        },
        **{"train_examples": 1000, "epochs_run": 3, "seconds": {"total": 20.0, "compile": 5.0}},
        **{"tokens_per_second": 1e5, "peak_memory_bytes": 2e9, "warnings": ["kernels differ"]},
    }
    law = {"holds": False, "found": "1 move none: ['q']"}
    tests = {"passed": 30, "failed": 1, "skipped": 0, "seconds": 9.0, "names_of_failed": ["tests.a.test_b"]}
    plan = {work: {"bytes": 2e10} for work in script.WORKS}
    apart, together = ({"first_seconds": 1.0, "seconds": [seconds]} for seconds in (0.04, 0.01))
    beside = {"status": "done", "seconds": 9.0, "result": {"apart": apart, "together": together}}

    def bits(seconds: float):
        step = {"first_seconds": 9.0, "seconds": [seconds] * 3, "held_bytes": 7e9, "peak_bytes": 1.5e10}
        step["peak_bytes_before"] = 1.5e10 if seconds == 0.3 else 8e9
        return {"status": "done", "seconds": 30.0, "result": {"train_step": step}}

    return {
        "date": "2026-11-26T10:00+00:00",
        "device": {
            **{"kind": "NVIDIA H100 80GB HBM3", "platform": "gpu", "count": 1, "memory_bytes": 8e10},
            **{"versions": {"jax": "1"}, "commit": "abc", "torch": {"device": "cuda", "versions": {"torch": "2"}}},
        },
        **{"minutes": 25, "minutes_used": 20.0, "tiny": False, "sizes": ["xl"], "methods": ["lora", "full"]},
        "parts": {
            "parity": {"golden files": {"status": "done", "seconds": 20.0, "result": tests}},
            "laws": {"bfloat16": {"status": "done", "seconds": 9.0, "result": {"1 % of any leaf of lora": law}}},
            "speed": {
                "xl lora jpeft": side(0.2, 2.2e10),
                "xl lora torch": side(0.5, 3e10),
                "xl full jpeft": why,
                "xl full torch": {"status": "not run", "why": "the time was over"},
            },
            "memory": {"xl lora": {"status": "done", "seconds": 30.0, "result": plan}},
            "gradients": {"lora": {"status": "done", "seconds": 9.0, "result": {"lora, paper, float32": law}}},
            "bits": {f"xxl {kind}": bits(seconds) for kind, seconds in (("nf4", 0.3), ("none", 0.2))},
            "together": {"mini 4 runs": beside},
            "cells": {"mini": {"status": "done", "seconds": 40.0, "result": cell}},
        },
    }


def test_the_page_says_what_is_known_and_what_is_not(script, tmp_path):
    day = made_up(script)
    day["methods"].append("ia3")  # without any measurement
    day["notes"] = ["The fan was loud."]
    text = script.write(day, tmp_path).read_text()
    assert "\n\nThe fan was loud.\n\n" in text and "| xl | ia3 |  |  |" not in text.partition("## Memory")[0]
    assert text.startswith(
        "# jpeft on NVIDIA H100 80GB HBM3\n\n2026-11-26T10:00+00:00, commit `abc`, 20.0 of 25 minutes"
    )
    assert "| xl | **2.50** (2.50 to 2.50) | **2.50** (2.50 to 2.50) |" in text
    assert (
        "| golden files | 30 | **1** | 0 | 20 |" in text
        and "- failed: `tests.a.test_b`" in text
        and "**broken**" in text
    )
    step = script.SIZES["xl"].train_flops("lora") / 0.2 / 989e12
    assert f"| xl | lora | 0.200 | 0.500 | **2.50** | {100 * step:.1f} % |" in text
    read = script.SIZES["xl"].generation_bytes("lora", rows=16, itemsize=2) / 0.2 / 3350e9
    assert f"| 5,120 | 2,048 | {100 * read:.1f} % |" in text
    assert "| 22.00 | 20.00 | **1.10** | ≤ 22.00 | 20.00 | 22.00 | 20.00 | **1.10** | 30.00 |" in text
    assert "| mini | lora, agnews | accuracy | 0.710 | 0.250 | 1000 | 3 | 40 | 20 | 5 | 2.00 |" in text
    assert "| lora, paper, float32 | **broken** | 1 move none: ['q'] |" in text
    assert "| xxl | nf4 | 0.300 | **1.50** | 7.00 | ≤ 15.00 |" in text
    assert "| xxl | bfloat16 | 0.200 | **1.00** | 7.00 | 15.00 |" in text
    assert "| mini | 4 | 40.0 | 10.0 | **4.00** |" in text
    assert "- mini was warned: kernels differ" in text
    absent = text.partition("## What is not here")[2]
    assert "- speed, xl full jpeft: failed: ended with status 1: Out of memory\n" in absent
    assert "- speed, xl full torch: not run: the time was over" in absent
    [file] = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == json.loads(json.dumps(day))


def test_a_page_without_torch_and_of_an_unknown_device_says_so(script):
    day = made_up(script)
    day["device"] |= {"kind": "Chip 9", "torch": {"device": None, "why": "torch not installed"}}
    day["parts"]["speed"] = {name: e for name, e in day["parts"]["speed"].items() if name.endswith("jpeft")}
    text = script.page(day)
    assert "Torch's columns are empty: torch not installed." in text and "torch / jpeft" not in text
    assert "This device's peaks are not in" in text


def test_a_day_ends_in_time_names_what_it_left_and_writes_after_each_piece(script, tmp_path, monkeypatch):
    known = {"kind": "cpu", "platform": "cpu", "count": 1, "versions": {}, "commit": None}
    known["torch"] = {"device": None, "why": "torch not installed"}
    clock, written = [0.0], []
    todo = [python(script, "", name=name) for name in ("first", "second", "third")]

    def run_piece(piece, seconds):
        if piece.part == "device":
            return {"status": "done", "seconds": 0.0, "result": known}
        written.append(sorted(file.name for file in tmp_path.iterdir()))
        clock[0] += 50.0
        return {"status": "done", "seconds": 50.0, "result": {}}

    monkeypatch.setattr(script, "run_piece", run_piece)
    monkeypatch.setattr(script, "pieces", lambda *_, **__: todo)
    monkeypatch.setattr(script.time, "monotonic", lambda: clock[0])
    asked = ["--minutes", "1.8", "--only", "laws", "--note", "At night.", "--note", "Alone."]
    day = script.run_day(script.parse([*asked, "--out", str(tmp_path)]), report=str)
    assert "\n\nAt night.\n\nAlone.\n\n" in (tmp_path / "cpu.md").read_text()
    assert [entry["status"] for entry in day["parts"]["laws"].values()] == ["done", "done", "not run"]
    assert written == [[], ["cpu.json", "cpu.md"]]
    assert "laws, third: not run: the time was over" in (tmp_path / "cpu.md").read_text()


def test_a_part_that_is_none_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--only", "laws,lows"])
    assert "--only has lows; expected some of gradients, parity, laws" in capsys.readouterr().err


def test_what_is_no_day_or_no_number_of_jobs_is_one_line(script, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    for name, says in (
        ("none", "cannot be read"),
        ("other", "not the JSON of a day"),
        ("broken", "not the JSON of a day"),
    ):
        with pytest.raises(SystemExit, match=says):
            script.main(["--page", str(tmp_path / f"{name}.json")])
    with pytest.raises(SystemExit):
        script.parse(["--jobs", "0"])
    assert "--jobs is 0; expected 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_day_comes_to_its_end_on_a_cpu(script, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", of_devices(1)["XLA_FLAGS"])
    arguments = script.parse(["--tiny", "--methods", "lora", "--out", str(tmp_path)])
    day = script.run_day(arguments)
    for part, entries in day["parts"].items():
        for name, entry in entries.items():
            assert entry["status"] == ("not run" if name == "smollm2" else "done"), (part, name, entry)
    assert day["parts"]["parity"]["golden files"]["result"]["passed"] > 0
    laws = day["parts"]["laws"]["bfloat16"]["result"]
    assert len(laws) == 4 and all(law["holds"] for law in laws.values()), laws
    checked = day["parts"]["gradients"]["lora"]["result"]
    assert len(checked) == 4 and all(law["holds"] for law in checked.values()), checked
    bits = {name: entry["result"]["train_step"]["seconds"] for name, entry in day["parts"]["bits"].items()}
    assert set(bits) == {"tiny none", "tiny int8", "tiny nf4"}
    assert set(day["parts"]["together"]["tiny 8 runs"]["result"]) == {"apart", "together"}
    works = day["parts"]["speed"]["tiny lora jpeft"]["result"]
    assert set(works) == set(script.WORKS) and works["train_step"]["flops_per_second"] > 0
    assert ("tiny lora torch" in day["parts"]["speed"]) == (day["device"]["torch"]["device"] is not None)
    assert all(day["parts"]["memory"]["tiny lora"]["result"][work]["bytes"] > 0 for work in script.WORKS)
    assert "| tiny | lora |" in (tmp_path / "cpu.md").read_text()
