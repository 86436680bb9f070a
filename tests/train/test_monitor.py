"""Which evaluation was the best, and when to stop."""

import pytest

from jpeft.config import Run, monitored_metric
from jpeft.errors import UserError
from jpeft.train.monitor import Monitor


def history(*values, name="validation/loss"):
    return [{name: value, "validation/other": 0.0} for value in values]


@pytest.mark.parametrize(
    ("values", "higher", "patience", "best", "stops"),
    [
        ((3.0,), False, 1, 0, False),
        ((3.0, 2.0), False, 1, 1, False),
        ((3.0, 2.0, 2.0), False, 1, 1, True),
        ((3.0, 2.0, 2.5), False, 2, 1, False),
        ((0.1, 0.5, 0.5), True, 1, 1, True),
        ((0.5, 0.1, 0.6), True, 2, 2, False),
        ((0.5, 0.4, 0.3), True, 2, 0, True),
    ],
)
def test_the_first_of_the_best_counts_in_its_direction(values, higher, patience, best, stops):
    monitor = Monitor("validation/loss", higher, patience)
    assert monitor.best(history(*values)) == best and monitor.out_of_patience(history(*values)) == stops
    assert monitor.is_best(history(*values)) == (best == len(values) - 1)


def test_before_the_first_evaluation_nothing_is_best_and_patience_is_whole():
    assert Monitor().best([]) is None and not Monitor().out_of_patience([]) and not Monitor().is_best([])


def test_evaluations_of_something_else_do_not_count():
    monitor, others = Monitor("validation/rouge_l", True, 1), [{"validation/loss": 1.0}] * 3
    assert monitor.best([*history(0.3, name="validation/rouge_l"), *others]) == 0
    assert not monitor.out_of_patience([*history(0.3, name="validation/rouge_l"), *others])
    assert not monitor.is_best([*history(0.3, name="validation/rouge_l"), *others])


@pytest.mark.parametrize(
    ("monitor", "task", "says"),
    [
        ("loss", "agnews", "train.monitor is 'loss'; expected validation/loss, or validation/ and a metric: accuracy"),
        ("test/accuracy", "agnews", "train.monitor is 'test/accuracy'; expected validation/loss"),
        ("validation/", "agnews", "expected validation/loss"),
        ("validation/acuracy", "agnews", "train.monitor: there is no metric 'acuracy'; did you mean accuracy?"),
        ("validation/rouge_l", "agnews", "train.monitor: rouge_l judges texts, and the task is a classification"),
        ("validation/macro_f1", "e2e", "train.monitor: macro_f1 judges classes"),
        ("validation/two words:f", "agnews", "names no function"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_loaded(monitor, task, says):
    with pytest.raises(UserError) as refused:
        Run.from_config({"train": {"monitor": monitor}, "data": {"task": task}})
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_metric_has_one_name():
    run = Run.from_config({"train": {"monitor": "validation/rougeL"}, "data": {"task": "samsum"}})
    assert run.train.monitor == "validation/rouge_l" and monitored_metric(run.train.monitor) == "rouge_l"
    assert Run.from_config({}).train.monitor == "validation/loss" and monitored_metric("validation/loss") is None
