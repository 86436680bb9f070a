"""The table of metrics: values computed by hand or by another implementation, and refused combinations."""

import dataclasses
import math
import re
import unicodedata

import numpy as np
import pytest

from jpeft.config import Run
from jpeft.data.tasks import TASKS, Example
from jpeft.errors import UserError
from jpeft.eval.answering import ScoredAnswers
from jpeft.eval.metrics import (
    METRICS,
    higher_is_better,
    judge,
    named,
    own,
    parse_metrics,
    reference_cautions,
    require_metrics,
)
from jpeft.eval.metrics.base import LABELS, PROBABILITIES, TEXTS, Answered
from jpeft.eval.metrics.question_answering import normalised
from jpeft.eval.metrics.translation import bleu_tokenizer


def rows(*references):
    """Examples with distinct inputs and these references."""
    made = [(r,) if isinstance(r, str) else tuple(r) for r in references]
    return [Example(f"test/{i}", f"input {i}", r[0], r) for i, r in enumerate(made)]


def custom(kind, *metrics, answers=()):
    return dataclasses.replace(TASKS["custom"], kind=kind, metrics=metrics, answers=answers)


CAT = ["the cat sat on the mat", "a dog ran"]
MAT = [["the cat sat on a mat", "the cat was on the mat"], ["the dog ran away"]]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_within_its_range_and_at_its_best_where_all_is_right(name):
    metric = METRICS[name]
    labels = ("a b c d e", "f g h i j")
    given = {"labels": labels, "probabilities": np.array([[1.0, 0.0], [0.0, 1.0]])}
    best = metric.range[metric.higher_is_better]
    assert metric(labels, [[label] for label in labels], **given) == pytest.approx(best)
    wrong = metric(["x", labels[0]], [[label] for label in labels], **given)
    assert metric.range[0] <= wrong <= metric.range[1] and wrong != pytest.approx(best)


@pytest.mark.parametrize("name", METRICS)
def test_rows_that_count_twice_are_the_same_rows_twice(name):
    """Weighted rows give the same value as repeated rows."""
    if METRICS[name].of_split is None:
        return
    predictions, targets = ["a b", "c d e", "a b", "zz"], ["a b", "c d f", "c d f", "a b"]
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.55, 0.45]])

    def answered(order):
        texts = ([predictions[i] for i in order], [[targets[i]] for i in order])
        return Answered(*texts, ("a b", "c d f"), probabilities[order])

    weighted = METRICS[name].of(answered([0, 1, 2, 3])).weighted
    assert weighted is not None
    assert weighted(np.array([2.0, 0, 1, 3])) == pytest.approx(METRICS[name].of(answered([0, 0, 2, 3, 3, 3])).number)


def test_macro_f1_by_hand():
    # a: 2 right, support 3, answered 3; b: 1 right, support 2, answered 2; c: none right, support 1, not answered.
    found = METRICS["macro_f1"](["a", " a", "b", "b\n", "bad", "a"], [[t] for t in "aaabbc"], labels=("a", "b", "c"))
    assert found == pytest.approx((2 * 2 / 6 + 2 * 1 / 4 + 0) / 3)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy_in_each_bin():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.2, 0.8], [0.21, 0.79]])
    answers, targets = ["a", "a", "b", "b"], [["a"], ["b"], ["b"], ["b"]]
    # The bin of 0.95 holds two rows, half of them right; that of 0.8 and 0.79, (11/15, 12/15], two, both right.
    expected = (2 * abs(0.95 - 0.5) + 2 * abs(0.795 - 1)) / 4
    metric = METRICS["expected_calibration_error"]
    assert metric(answers, targets, labels=("a", "b"), probabilities=probabilities) == pytest.approx(expected)
    with pytest.raises(ValueError, match="needs the probability of every label"):
        metric(answers, targets)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # "the cat sat" of "the cat" and "the cat sat down": words 3 of 3 and of 4; pairs 2 of 2 and of 3.
        ("rouge_1", 2 * 3 / (3 + 4)),
        ("rouge_2", 2 * 2 / (2 + 3)),
        ("rouge_l", 2 * 3 / (3 + 4)),
        ("rouge_lsum", 2 * 3 / (3 + 4)),
    ],
)
def test_every_rouge_counts_every_script_and_the_published_way_sees_ascii_alone(name, expected):
    assert METRICS[name](["the cat sat"], [["the cat sat down"]]) == pytest.approx(expected)
    assert METRICS[name](["кот сидел тут"], [["кот сидел тут долго"]]) == pytest.approx(expected)
    assert METRICS[name](["猫坐下"], [["猫坐下了"]]) == pytest.approx(expected)
    assert METRICS[name](["кот"], [["кот"]], rouge_tokenizer="rouge_score") == 0
    assert METRICS[f"{name}_multi_reference"](["the cat sat"], [["no", "the cat sat"]]) == 1


def test_a_summary_of_lines_in_another_order_is_whole_to_rouge_lsum_alone():
    assert METRICS["rouge_lsum"](["a dog ran\nthe cat sat"], [["the cat sat\na dog ran"]]) == 1
    assert METRICS["rouge_l"](["a dog ran\nthe cat sat"], [["the cat sat\na dog ran"]]) == pytest.approx(0.5)


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[MAT[0][0], MAT[1][0]], [MAT[0][1], None]]
    assert METRICS["bleu"](CAT, MAT) == pytest.approx(sacrebleu.corpus_bleu(CAT, streams).score)
    assert METRICS["chrf"](CAT, MAT) == pytest.approx(sacrebleu.corpus_chrf(CAT, streams).score)
    chinese, right = ["今天天气很好。"], [["今天天气不好。"]]
    assert METRICS["bleu"](chinese, right) == pytest.approx(
        sacrebleu.corpus_bleu(chinese, [right[0]], tokenize="zh").score
    )
    assert METRICS["bleu"](chinese, right) > 30 and sacrebleu.corpus_bleu(chinese, [right[0]]).score == 0


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_a_letter_and_its_marks_are_one_character_to_bleu_and_chrf(name):
    right = "안녕하세요 저는 학교에 갑니다 그리고 café"
    apart = unicodedata.normalize("NFD", right)
    assert apart != right and METRICS[name]([right], [[apart]]) == METRICS[name]([apart], [[right]]) == pytest.approx(
        100
    )
    for texts, says in ((apart, True), (right, False)):
        assert ("form:NFC" in judge(custom("generation", name), rows(texts), [texts]).computed_by[name]) == says


def test_bleu_by_hand():
    # Of "the cat sat on the mat" in "the cat sat on a mat" 5 of 6 words, 3 of 5 pairs, 2 of 4, 1 of 3; lengths equal.
    precisions = 5 / 6, 3 / 5, 2 / 4, 1 / 3
    assert METRICS["bleu"](CAT[:1], [MAT[0][:1]]) == pytest.approx(100 * math.prod(precisions) ** 0.25)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["A café."], "13a"), (["Привет"], "13a"), (["很好", "good"], "zh"), (["สวัสดี"], "char"), (["今日はいい"], "char")],
)
def test_bleu_counts_characters_where_words_have_no_spaces_and_says_so(texts, expected):
    assert bleu_tokenizer(Answered(texts, [[text] for text in texts])) == expected
    judged = judge(custom("generation", "bleu"), rows(*texts), texts)
    assert f"tok:{expected}" in judged.computed_by["bleu"] and "version:" in judged.computed_by["bleu"]
    cautions = reference_cautions(custom("generation", "bleu", "chrf"), rows(*texts))
    assert [f"BLEU uses the tokenizer {expected!r}" in line for line in cautions] == [True] * (expected != "13a")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a shrug ¯\\_(ツ)_/¯", *CAT], "13a"),
        (["five ฿5", "ten ฿10"], "13a"),
        (["My name is 王小明"], "13a"),
        (["使用 TensorFlow 训练模型"], "zh"),
        (["今天天气很好。" * 9, "の"], "zh"),  # a letter of Japanese in Chinese
        (["ราคา 20฿ ต่อวัน"], "char"),
    ],
)
def test_a_few_letters_of_another_script_do_not_choose_the_tokenizer_of_bleu(texts, expected):
    assert bleu_tokenizer(Answered(texts, [[text] for text in texts])) == expected


@pytest.mark.parametrize(("name", "expected"), [("bleu", "tok:13a"), ("rouge_l", "tokenizer:unicode")])
def test_a_part_of_a_split_has_the_tokenizer_of_the_whole(name, expected):
    task, examples = custom("generation", name), rows("猫坐下", "the cat sat on the mat", "a dog")
    scored = ScoredAnswers.of(["x"] * 3, judge(task, examples, ["x"] * 3))
    for part in ([0], [1, 2]):
        assert expected in scored.of_rows(part, task, examples).computed_by[name]


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1),  # articles, case and punctuation do not count
        ("the big eiffel tower", ["eiffel tower"], 0, 0.8),
        ("Paris", ["London", "paris."], 1, 1),  # the nearest reference
        ("a", ["the"], 1, 1),  # nothing is left of either
        ("", ["x"], 0, 0),
        ("big big", ["big"], 0, 2 / 3),  # a word counts as often as it is there
        ("¿Qué?", ["qué"], 1, 1),
        ("北京市", ["北京"], 0, 0.8),  # a character each
        ("「東京」", ["東京"], 1, 1),
        ("cafe\u0301", ["café"], 1, 1),
    ],
)
def test_exact_match_and_f1_are_squads_in_every_script(prediction, references, exact, f1):
    assert METRICS["exact_match"]([prediction], [references]) == exact
    assert METRICS["f1"]([prediction], [references]) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["A", "B", "C"], "1 of 3 test targets are empty, or the same as another one, to exact_match and f1"),
        (["-5", "5", "7"], "2 of 3 test targets .* such as '-5' and '5': a wrong answer may count as right"),
        (["1.5", "15"], "2 of 2 "),
        ([".5", "5", "5."], "3 of 3 "),
        (["C++", "D", "C"], "2 of 3 "),
        (["?", "x"], "1 of 2 test targets .*, such as '\\?':"),
        (["The cat.", "cat", '"A cat"', "Cat", "7", "7.0"], None),  # what SQuAD means to ignore
        ([("red", "-5"), "5"], "2 of 2 "),
        ([("Levi's Stadium", "Levis Stadium"), "7"], None),  # both are right answers of one row
    ],
)
def test_targets_that_exact_match_does_not_tell_apart_are_one_line_before_training(targets, says):
    found = reference_cautions(custom("generation", "exact_match", "f1"), rows(*targets))
    assert len(found) == (says is not None) and "\n" not in "".join(found)
    assert says is None or re.match(says, found[0])
    assert not reference_cautions(custom("generation", "accuracy"), rows(*targets))


def test_a_target_that_exact_match_does_not_tell_from_one_of_training_counts_too():
    task = custom("generation", "exact_match")
    (line,) = reference_cautions(task, rows("5", "7"), ["-5", "+5", "the", "7."])
    assert line.startswith("1 of 2 test targets") and "such as '5' and '-5'" in line


def test_on_ascii_the_normalisation_is_squads_own():
    import string

    def squad(text):  # evaluate-v1.1.py of Rajpurkar et al.
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    for text in ("The $100-bill, a+b = `an` (the) x_y", "AN apple\tThe\n A", "don't", "a-the"):
        assert normalised(text) == squad(text)


@pytest.mark.reference
def test_metrics_of_classes_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    targets, predictions = (draw.choice(list("abcd"), 300, p=[0.4, 0.3, 0.2, 0.1]).tolist() for _ in range(2))
    references = [[target] for target in targets]
    assert METRICS["accuracy"](predictions, references) == pytest.approx(sklearn.accuracy_score(targets, predictions))
    assert METRICS["matthews_correlation"](predictions, references) == pytest.approx(
        sklearn.matthews_corrcoef(targets, predictions)
    )
    assert METRICS["macro_f1"](predictions, references, labels=tuple("abcd")) == pytest.approx(
        sklearn.f1_score(targets, predictions, average="macro")
    )


# --- what a task is judged by ---


def test_a_users_rows_are_judged_by_what_was_asked_for_and_the_first_is_the_metric():
    task = custom("generation", "f1", "bleu")
    judged = judge(task, rows("the cat sat", "dog"), ["cat sat", "no"])
    assert task.metric == "f1" and list(judged.numbers) == ["f1", "bleu"]
    assert judged.numbers["f1"] == 0.5 and judged.scores == [1, 0]
    assert judged.uncertainties(rows("the cat sat", "dog")).keys() == {"f1", "bleu"}
    task = custom("generation", "bleu")  # no mean over rows: the rows are scored by ROUGE-L
    assert judge(task, rows("the cat sat"), ["the cat"]).scores == [pytest.approx(0.8)]
    task = custom("classification", "macro_f1", answers=("x", "y"))
    assert judge(task, rows("x", "y"), ["x", "?"]).numbers == {"macro_f1": 0.5, "unknown_answers": 0.5}


def test_the_benchmarks_tasks_keep_their_metric_with_what_was_asked_for_beside_it():
    task = dataclasses.replace(TASKS["samsum"], metrics=("rouge_1",))
    assert list(judge(task, rows("a dog"), ["a dog"]).numbers) == ["rouge_l", "rouge_1"]
    task = dataclasses.replace(TASKS["cola"], metrics=("macro_f1",))
    found = list(judge(task, rows("acceptable"), ["acceptable"]).numbers)
    assert found == ["accuracy", "macro_f1", "matthews_correlation", "unknown_answers"]


def test_the_calibration_error_is_of_scored_labels_alone():
    task = custom("classification", "accuracy", "expected_calibration_error", answers=("x", "y"))
    scored = judge(task, rows("x"), ["x"], np.array([[0.75, 0.25]]))
    assert scored.numbers["expected_calibration_error"] == pytest.approx(0.25)
    assert "expected_calibration_error" not in judge(task, rows("x"), ["x"]).numbers


def test_names_are_those_of_the_table_or_rouge_scores_and_others_are_refused_with_the_closest():
    assert parse_metrics("k", "rougeL, rouge2,macro_f1") == ("rouge_l", "rouge_2", "macro_f1")
    assert parse_metrics("k", None) == () and named("rougeLsum").name == "rouge_lsum"
    for text, says in (
        ("rogue_l", "there is no metric 'rogue_l'; did you mean rouge_l"),
        ("rouge_l,rougeL", "k names rouge_l twice"),
        (" , ", "expected names of metrics"),
        ("os.system:", "expected module:name"),
    ):
        with pytest.raises(UserError, match=says):
            parse_metrics("k", text)


def test_directions():
    assert higher_is_better("rouge_l") and higher_is_better("agreement_with_generation")
    assert not higher_is_better("expected_calibration_error") and not higher_is_better("generation_unknown_answers")
    assert {need for metric in METRICS.values() for need in metric.needs} == {LABELS, TEXTS, PROBABILITIES}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"data": {"task": "agnews"}, "eval": {"metrics": "bleu"}},
            "bleu judges texts, and the task is a clas",
        ),
        ({"data": {"task": "samsum"}, "eval": {"metrics": "macro_f1"}}, "macro_f1 judges classes"),
        (
            {"data": {"task": "cola"}, "eval": {"metrics": "expected_calibration_error"}},
            "needs the probability of every label; give eval.answer=score",
        ),
        (
            {
                "data": {"task": "custom", "path": "x.csv"},
                "eval": {"metrics": "expected_calibration_error", "answer": "score"},
            },
            "judged by its first metric, for which higher must be better",
        ),
        ({"eval": {"metrics": "accurracy"}}, "did you mean accuracy"),
    ],
)
def test_what_cannot_be_computed_is_refused_before_anything_is_loaded(config, says):
    with pytest.raises(UserError, match=says):
        Run.from_config(config)


def test_what_only_the_rows_tell_is_refused_once_they_are_read():
    task = Run.from_config({"data": {"task": "custom", "path": "x.csv"}, "eval": {"metrics": "f1"}}).build_task()
    require_metrics(dataclasses.replace(task, kind="generation"), "generate")
    with pytest.raises(UserError, match="f1 judges texts"):
        require_metrics(dataclasses.replace(task, kind="classification"), "score")


def test_a_metric_without_its_package_is_refused_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bleu needs sacrebleu: pip install 'jpeft\[metrics\]'"):
        Run.from_config({"data": {"task": "samsum"}, "eval": {"metrics": "bleu"}})


# --- a function of one's own ---


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of metrics to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own, "_loaded", {})

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_function_of_ones_own_gives_a_number_or_one_a_row(module):
    name = module(
        "own_a",
        "def words(predictions, references):\n    return [len(p.split()) for p in predictions]\n"
        "def whole(predictions, references):\n    return sum(map(len, references)) / len(predictions)\n"
        "whole.higher_is_better = False\n",
    )
    own.load_all([f"{name}:words", f"{name}:whole", "accuracy"])
    task = custom("generation", f"{name}:words", f"{name}:whole")
    examples = rows(("a", "b"), "c")
    judged = judge(task, examples, ["x y z", "x"])
    assert judged.numbers == {f"{name}:words": 2, f"{name}:whole": 1.5}
    assert judged.scores == [3, 1] and judged.best == math.inf
    assert judged.uncertainties(examples).keys() == {f"{name}:words"}  # of a number alone nothing can be told
    assert not higher_is_better(f"{name}:whole")


@pytest.mark.parametrize("given", ["100", "(0, 1, 2)", "('x', 2)", "(1, 0)", "None"])
def test_a_range_that_is_no_pair_of_numbers_is_one_line(given, module):
    name = module(f"own_r{abs(hash(given))}", f"def f(predictions, references):\n    return 0\nf.range = {given}\n")
    with pytest.raises(UserError, match="has range=.* expected two numbers, the lower first"):
        own.load(f"{name}:f")


def test_naming_a_function_imports_it_only_where_it_is_asked_for_by_load(module):
    name = module("own_b", "raise SystemError('it ran')\n")
    run = Run.from_config({"data": {"task": "custom", "path": "x.csv"}, "eval": {"metrics": f"{name}:f"}})
    assert run.build_task().metric == f"{name}:f"  # a config that was read imported nothing
    with pytest.raises(UserError, match="runs only if it is named in"):
        judge(custom("generation", f"{name}:f"), rows("a"), ["a"])
    with pytest.raises(UserError, match=r"cannot be imported \(SystemError: it ran\)"):
        own.load(f"{name}:f")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 'good'", "gave str of 4; expected one finite number, or one for each of 2 rows"),
        ("return [1.0]", "gave list of 1"),
        ("return float('nan')", "gave nan"),
        (
            "import numpy\n    return numpy.ones((2, 1))",
            "gave an array of float64s of shape .2, 1.; expected one finite number",
        ),
        ("return [[1.0], [1.0, 2.0]]", r"fails on 2 rows \(ValueError"),
        ("class Long:\n        __repr__ = lambda self: 'a\\n  b'\n    return Long()", "gave a b; expected"),
        ("return predictions[9]", r"fails on 2 rows \(IndexError"),
        ("return 1.5\nf.range = (0, 1)", "gave 1.5; .* 0 to 1"),
    ],
)
def test_what_a_function_gives_is_checked(body, says, module, request):
    name = module(f"own_c{abs(hash(body))}", f"def f(predictions, references):\n    {body}\n")
    own.load(f"{name}:f")
    with pytest.raises(UserError, match=says) as refused:
        judge(custom("generation", f"{name}:f"), rows("a", "b"), ["a", "b"])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="the module has no function 'g'"):
        own.load(f"{name}:g")
