"""Records of runs: complete, of older versions, or damaged."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jpeft.errors import RunFailed
from jpeft.results import NotARecord, RunRecord, Uncertainty, check_result
from tests.report.synthetic import record

OLD = Path(__file__).parent / "golden/runs_0_1_0"
TODAYS = {
    "quantization": "nf4,double",
    "data_digest": "ab12",
    "labels": ["a", "b"],
    "rouge_tokenizer": "unicode",
    "computed_by": {"bleu": "tok:13a"},
    "uncertainty": {
        "standard_error": None,
        "interval": [0.1, 0.9],
        "method": "wilson",
        "rows": 9,
        "metric": "accuracy",
    },
    "uncertainties": {"f1": {"standard_error": 0.5, "interval": [0, 1], "method": "x", "rows": 9, "metric": "f1"}},
    "per_class": {"macro_f1": 0.1, "majority": {"label": "a", "share": 0.5}},
    "warnings": ["few rows"],
    "trained_on_after": [2],
    "together": 4,
    "settled": {"model.remat": "dots", "train.batch_size": 4},
    "monitor": "validation/rouge_l",
    "validation_metrics": [{"rouge_l": 0.5}] * 5,
    "by_source": {
        "a.csv": {"validation_examples": 3, "test_examples": 4, "validation_loss": 0.5, "metrics": {"accuracy": 0.5}}
    },
}


def test_what_is_written_is_read_and_what_is_read_is_written():
    whole = record(**TODAYS)
    read = RunRecord.of(json.loads(json.dumps(whole)))
    assert read.uncertainty == Uncertainty("accuracy", None, (0.1, 0.9), "wilson", 9)
    assert json.loads(json.dumps(read.to_dict())) == {"answer": "generate", **whole}
    assert RunRecord.of(read.to_dict()) == read


def test_a_record_of_0_1_0_means_what_it_meant():
    old = RunRecord.read(OLD / "ia3_samsum_low_seed0/result.json")
    assert (old.data_digest, old.uncertainty, old.uncertainties, old.warnings) == (None, None, {}, ())
    assert old.metric_name == "rouge_l" and old.rouge_tokenizer is None and old.by_source is None
    labels = RunRecord.read(OLD / "lora_agnews_low_seed0/result.json").labels
    assert labels == ("World", "Sports", "Business", "Sci/Tech")


def test_a_key_of_a_later_version_is_left_out():
    assert RunRecord.of({**record(), "of_tomorrow": 1}) == RunRecord.of(record())


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunRecord)])
def test_a_value_that_no_run_writes_is_refused_by_its_key(name):
    whole = RunRecord.of(record(**TODAYS)).to_dict()
    for value in (object, {"x" * 400: object}, ["\x1b", 3.5, {}]):
        if name in ("mesh", "versions", "settled") and isinstance(value, dict):  # shown as they are
            continue
        with pytest.raises(NotARecord, match="status is" if name == "status" else f"^{name} is .*; expected "):
            RunRecord.of({**whole, name: value})


INTERVAL = {"metric": "accuracy", "standard_error": 0.1, "method": "wilson", "rows": 9}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": 2.0, "metrics": {"accuracy": 2.0}}, "metric is 2.0; expected 0 to 1"),
        ({"zero_shot": {"accuracy": 2}}, "zero_shot has 'accuracy' at 2; expected 0 to 1"),
        ({"uncertainty": {**INTERVAL, "interval": [0.9, 0.1]}}, "from the lower number to the higher"),
        ({"uncertainty": {**INTERVAL, "interval": [-1e300, 1]}}, "uncertainty has 'accuracy' at -1e"),
        ({"uncertainties": {"accuracy": {**INTERVAL, "interval": [0, 2]}}}, "uncertainty has 'accuracy' at 2"),
        ({"together": 0}, "together is 0; expected a whole number, 1 or more"),
        ({"device_count": 0}, "device_count is 0; expected a whole number, 1 or more"),
        ({"validation_losses": [0.5]}, "validation_losses are 1, of"),
        ({"zero_shot": {"f1": 1.0}}, "zero_shot lacks 'accuracy'"),
        ({"uncertainties": {"f1": {"interval": [1]}}}, "expected standard_error, interval"),
        ({"per_class": {"macro_f1": None, "majority": {"label": "a", "share": 1}}}, "per_class is"),
        (
            {"monitor": "validation/f1", "validation_metrics": [{"f1": 0.5}, {"accuracy": 1}] * 5},
            "lack 'f1' of an epoch",
        ),
        ({"monitor": "validation/f1", "validation_metrics": [{"f1": 0.5}]}, "lack 'f1' of an epoch"),
        ({"by_source": {"a.csv": {"test_examples": 4}}}, "expected of each file validation_examples"),
        ({"validation_loss": -1}, "validation_loss is -1; expected a finite number, 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, why, tmp_path):
    whole = {**record(task="cola"), **changes}
    with pytest.raises(NotARecord, match=why):
        RunRecord.of(whole)
    with pytest.raises(RunFailed, match=r"result.json is damaged \(.*give --overwrite"):
        check_result(whole, tmp_path / "result.json")


def test_a_headline_of_another_range_is_a_record():
    bleu = {"metric_name": "bleu", "metrics": {"bleu": 31.5}, "zero_shot": None}
    assert RunRecord.of({**record(), **bleu, "metric": 31.5}).metric == 31.5
    own = {"metric_name": "my:words", "metrics": {"my:words": -250.0}, "zero_shot": None}
    assert RunRecord.of({**record(), **own, "metric": -250.0}).metric == -250


def test_a_run_that_did_not_finish_or_another_programs_file_is_none():
    with pytest.raises(NotARecord, match="status is 'failed': 'out of memory'"):
        RunRecord.of({**record(), "status": "failed", "error": "out of memory"})
    with pytest.raises(NotARecord, match="of another program"):
        RunRecord.of({"status": "done", "steps": 3})
    with pytest.raises(NotARecord, match="lacks device, seed|lacks seed, device"):
        RunRecord.of({k: v for k, v in record().items() if k not in ("seed", "device")})


def test_reading_results_loads_neither_a_network_nor_a_tokenizer():
    """Reports read files only, so they start fast and need no JAX."""
    heavy = ["jax", "flax", "tokenizers", "transformers", "jpeft.model", "jpeft.peft"]
    code = f"import sys, jpeft.report.records, jpeft.results; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
