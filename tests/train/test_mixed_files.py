"""A run on two files, tested on both together and on each."""

import json

from jpeft.config import Run
from jpeft.results import RunRecord
from tests.train.scripted import run_scripted


def test_each_file_has_its_part_of_the_result(tmp_path, tiny_checkpoint, monkeypatch):
    for name, number in (("few.jsonl", 30), ("many.jsonl", 60)):
        rows = [{"input": f"{name} {i}", "target": ["yes", "no", "maybe"][i % 3]} for i in range(number)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"task": "custom", "path": f"{tmp_path}/few.jsonl,{tmp_path}/many.jsonl", "mix": "1,1"}
    train = {"max_epochs": 2, "batch_size": 4, "accumulation_steps": 1}
    model, judged = {"name": str(tiny_checkpoint)}, {"metrics": "accuracy,macro_f1"}
    config = {"model": model, "data": data, "eval": judged, "train": train}
    script = run_scripted(Run.from_config(config), tmp_path / "run", monkeypatch)
    record = RunRecord.of(json.loads(json.dumps(script.result)))
    assert record.by_source is not None and list(record.by_source) == ["few.jsonl", "many.jsonl"]
    few, many = record.by_source.values()
    assert (few["test_examples"], many["test_examples"], record.test_examples) == (3, 6, 9)
    assert (few["validation_examples"], many["validation_examples"]) == (3, 6)
    assert few["metrics"].keys() == {"accuracy", "macro_f1", "unknown_answers"}
    together = (3 * few["metrics"]["accuracy"] + 6 * many["metrics"]["accuracy"]) / 9
    assert abs(together - record.metrics["accuracy"]) < 1e-9
    assert few["validation_loss"] > 0
    # 72 training rows, half of an epoch from each file: few.jsonl's 24 come 1.5 times.
    assert record.train_examples == 72 and len(script.of("train")) == 2 * 18
