"""Standard errors and intervals, compared with values computed by hand or published."""

import math

import numpy as np
import pytest

from jpeft.eval import uncertainty
from jpeft.eval.uncertainty import Uncertainty, in_words, share_uncertainty, wilson


def mean_uncertainty(*given) -> Uncertainty:
    found = uncertainty.mean_uncertainty(*given)
    assert found is not None
    return found


def resampled_uncertainty(*given) -> Uncertainty:
    found = uncertainty.resampled_uncertainty(*given)
    assert found is not None
    return found


def test_the_standard_error_of_an_accuracy_is_the_binomials():
    found = share_uncertainty("accuracy", [1.0] * 60 + [0.0] * 40)
    assert found.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 100))
    assert (found.method, found.rows, found.metric) == ("wilson", 100, "accuracy")


@pytest.mark.parametrize(
    ("right", "rows", "interval"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_interval_is_wilsons(right, rows, interval):
    assert wilson(right / rows, rows) == pytest.approx(interval, abs=5e-5)
    assert share_uncertainty("accuracy", [1.0] * right + [0.0] * (rows - right)).interval == pytest.approx(
        interval, abs=5e-5
    )


def test_all_right_or_all_wrong_is_not_certain():
    wrong, right = share_uncertainty("accuracy", [0.0] * 30), share_uncertainty("accuracy", [1.0] * 30)
    assert wrong.interval[0] == 0 and wrong.interval[1] == pytest.approx(0.1135, abs=1e-4)
    assert right.interval[1] == 1 and right.interval[0] == pytest.approx(1 - 0.1135, abs=1e-4)


def test_scores_that_are_all_alike_are_not_certain_either():
    found = mean_uncertainty("rouge_l", [0.0] * 30)
    assert found.standard_error == 0 and found.interval == (0, pytest.approx(0.1135, abs=1e-4))
    assert mean_uncertainty("rouge_l", [0.5] * 30).interval == pytest.approx((0.5 - 0.0568, 0.5 + 0.0568), abs=1e-4)


def test_the_standard_error_of_a_mean_is_that_of_the_sample():
    scores = [0.1, 0.4, 0.4, 0.9]  # mean 0.45, squares 0.1225 + 0.0025 * 2 + 0.2025 = 0.33
    assert mean_uncertainty("rouge_l", scores).standard_error == pytest.approx(math.sqrt(0.33 / 3 / 4))


def test_the_bootstrap_agrees_with_the_normal_interval_where_there_are_many_rows():
    scores = np.random.default_rng(5).beta(2, 3, size=1500).tolist()
    found = mean_uncertainty("rouge_l", scores)
    error = np.std(scores, ddof=1) / math.sqrt(1500)
    assert found.standard_error == pytest.approx(error)
    assert found.interval == pytest.approx((np.mean(scores) - 1.96 * error, np.mean(scores) + 1.96 * error), abs=1e-3)
    assert found == mean_uncertainty("rouge_l", scores)  # the same at every call


def test_two_rows_give_the_percentiles_of_their_four_samples():
    # The samples of two rows are 0, 0.5 twice, 1: a quarter each.
    assert mean_uncertainty("rouge_l", [0.0, 1.0]).interval == (0.0, 1.0)


def test_rows_of_one_input_count_once():
    """Repeating every input four times adds no information."""
    scores = [1.0] * 60 + [0.0] * 40
    inputs = [str(i) for i in range(100)]
    once = share_uncertainty("accuracy", scores, inputs)
    often = share_uncertainty("accuracy", scores * 4, inputs * 4)
    assert often.rows == 400
    assert often.standard_error == pytest.approx(once.standard_error)
    assert often.interval == pytest.approx(once.interval)
    scores = np.random.default_rng(1).uniform(size=100).tolist()
    once, often = (mean_uncertainty("rouge_l", scores * n, inputs * n) for n in (1, 4))
    assert often.standard_error == pytest.approx(once.standard_error) and often.interval == once.interval


def test_a_number_of_a_split_is_drawn_as_a_mean_is():
    """For a mean, both methods use the same draws: equal intervals and nearly equal standard errors."""
    scores = np.random.default_rng(2).uniform(size=60)
    inputs = [i // 2 for i in range(60)]  # two rows each: drawn together
    of_mean = mean_uncertainty("m", scores.tolist(), inputs)
    resampled = resampled_uncertainty("m", lambda weights: float(weights @ scores / weights.sum()), inputs)
    assert resampled.interval == pytest.approx(of_mean.interval, abs=1e-12)
    assert resampled.standard_error == pytest.approx(of_mean.standard_error, rel=0.05)
    alike = resampled_uncertainty("m", lambda weights: 50.0, range(30), (0.0, 100.0))
    assert alike.interval == pytest.approx((50 - 5.68, 50 + 5.68), abs=1e-2)
    assert resampled_uncertainty("m", lambda weights: 2.0, ["a", "a"], (-1.0, 1.0)).interval == (-1.0, 1.0)


def test_one_row_of_a_score_without_bounds_says_nothing():
    unbounded = (-math.inf, math.inf)
    assert uncertainty.mean_uncertainty("m", [3.0], None, unbounded) is None
    assert mean_uncertainty("m", [3.0, 3.0], None, unbounded).interval == (3.0, 3.0)


def test_references_that_differ_within_an_input_do_not_promise_more_than_their_rows():
    scores = [0.0, 1.0] * 50  # each input once right and once wrong: between inputs nothing differs
    found = share_uncertainty("accuracy", scores, [i // 2 for i in range(100)])
    assert found.interval[0] < 0.5 < found.interval[1] and found.interval[1] - found.interval[0] > 0.1


@pytest.mark.parametrize("of", [share_uncertainty, mean_uncertainty])
def test_one_row_tells_no_error(of):
    found = of("m", [1.0])
    assert found.standard_error is None and found.interval[0] < 0.25 and found.interval[1] == 1
    assert "standard error" not in in_words(found.to_dict())
    with pytest.raises(ValueError, match="no scores"):
        of("m", [])


def test_in_words():
    record = share_uncertainty("accuracy", [1.0] * 60 + [0.0] * 40).to_dict()
    assert record["interval"] == [pytest.approx(0.5020, abs=1e-4), pytest.approx(0.6906, abs=1e-4)]
    assert in_words(record) == "95 %: 0.502 to 0.691, standard error 0.049"
    assert in_words(None) == ""  # of a result of an earlier version
