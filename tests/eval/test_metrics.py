"""Metrics, compared with values computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jpeft.data.tasks import TASKS, Example
from jpeft.eval.metrics import METRICS, judge, rouge_tokenizer
from jpeft.eval.metrics.classes import right
from jpeft.eval.metrics.rouge import Rouge, tokenizer_for


def example(target, *others):
    return Example("test/0", "input", target, (target, *others))


def score(task, examples, predictions):
    judged = judge(task, examples, predictions)
    return judged.scores, judged.numbers


def matthews_correlation(predictions, targets):
    return METRICS["matthews_correlation"](predictions, [[target] for target in targets])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("World", 1), (" World\n", 1), ("world", 0), ("World.", 0), ("", 0), ("World World", 0)],
)
def test_a_right_answer_forgives_surrounding_white_space_and_nothing_else(prediction, expected):
    assert right(prediction, "World") == expected


def test_matthews_correlation_of_two_classes_is_phi():
    # 6 true positives, 3 true negatives, 2 false positives, 1 false negative.
    predictions = ["a"] * 6 + ["b"] * 3 + ["a"] * 2 + ["b"]
    targets = ["a"] * 6 + ["b"] * 3 + ["b"] * 2 + ["a"]
    phi = (6 * 3 - 2 * 1) / math.sqrt((6 + 2) * (6 + 1) * (3 + 2) * (3 + 1))
    assert matthews_correlation(predictions, targets) == pytest.approx(phi)


def test_matthews_correlation_is_1_when_all_is_right_and_minus_1_when_both_classes_are_exchanged():
    assert matthews_correlation(list("abab"), list("abab")) == pytest.approx(1)
    assert matthews_correlation(list("abab"), list("baba")) == pytest.approx(-1)


def test_matthews_correlation_of_three_classes_is_gorodkins():
    predictions, targets = list("aabbcc"), list("aabbca")
    # 5 of 6 right; predicted 2, 2, 2; true 3, 2, 1: (5*6 - 3*2 - 2*2 - 1*2) / sqrt((36 - 12) * (36 - 14)).
    assert matthews_correlation(predictions, targets) == pytest.approx(18 / math.sqrt(24 * 22))


def test_a_constant_predictor_has_no_correlation():
    assert matthews_correlation(["a"] * 4, list("aaab")) == 0
    assert matthews_correlation(list("aaab"), ["a"] * 4) == 0
    assert matthews_correlation(["a"] * 4, ["a"] * 4) == 0


def test_an_answer_that_is_no_label_counts_as_a_class_of_its_own():
    # Right 3 of 4; true a 2, b 2; predicted a 2, b 1, x 1: (3*4 - 2*2 - 2*1) / sqrt((16 - 6) * (16 - 8)).
    assert matthews_correlation(["a", "a", "b", "x"], list("aabb")) == pytest.approx(6 / math.sqrt(10 * 8))


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("the cat sat", "the cat sat", 1),
        ("the cat", "the cat sat", 0.8),  # precision 1, recall 2/3
        ("sat cat the", "the cat sat", 1 / 3),  # the longest common subsequence has one word
        ("a dog", "the cat sat", 0),
        ("", "the cat sat", 0),
        ("The CAT, sat!", "the cat sat", 1),  # case and punctuation do not count
        ("running dogs", "run dog", 1),  # nor endings
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence_of_stems(prediction, target, expected):
    assert Rouge()(prediction, target) == pytest.approx(expected)


def test_the_best_rouge_l_is_that_of_the_nearest_reference():
    assert Rouge().best("the cat", ["a dog", "the cat sat", "the"]) == pytest.approx(0.8)
    assert Rouge().best("the cat", ["the cat"]) == 1


def test_a_classification_has_accuracy_correlation_and_the_share_of_answers_that_are_no_label():
    rows = [example("acceptable"), example("unacceptable"), example("acceptable"), example("unacceptable")]
    predictions = ["acceptable", "unacceptable ", "unacceptable", "maybe"]
    scores, numbers = score(TASKS["cola"], rows, predictions)
    assert scores == [1, 1, 0, 0]
    # Right 2 of 4; true 2, 2; predicted acceptable 1, unacceptable 2, maybe 1.
    correlation = pytest.approx((2 * 4 - 2 * 1 - 2 * 2) / math.sqrt((16 - 6) * (16 - 8)))
    assert numbers == {"accuracy": 0.5, "matthews_correlation": correlation, "unknown_answers": 0.25}


def test_a_generation_has_rouge_l_and_where_there_are_several_references_the_best_of_them():
    rows = [example("the cat sat", "the cat"), example("a dog")]
    scores, numbers = score(TASKS["e2e"], rows, ["the cat", "a dog"])
    assert scores == [pytest.approx(0.8), 1]  # against the row's own target
    assert numbers == {"rouge_l": pytest.approx(0.9), "rouge_l_multi_reference": 1}


def test_without_further_references_there_is_one_rouge_l():
    assert score(TASKS["samsum"], [example("a dog")], ["a dog"]) == ([1], {"rouge_l": 1})


def test_as_many_predictions_as_examples_are_required():
    for task in ("cola", "samsum"):
        with pytest.raises(ValueError, match="zip"):
            judge(TASKS[task], [example("a"), example("b")], ["a"])


@pytest.mark.parametrize(
    "text",
    [
        "पूर्व प्रधानमन्त्री शिंजो",  # vowels are marks on letters
        "Привет, мир!",
        "今天天气很好。",
        "สวัสดีครับ",
        "안녕하세요 세계",
        "مرحبا بالعالم",
        "Größe",
        "שלום",
        "😀",
        "?!",
    ],
)
def test_what_is_identical_has_rouge_l_1_in_every_script(text):
    rows = [example(text)]
    assert score(TASKS["custom"], rows, [text]) == ([1], {"rouge_l": 1})
    assert rouge_tokenizer(TASKS["custom"], rows) == "unicode"


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("Grüße", "Größe", 0),
        ("die Grüße", "die Größe", 0.5),
        ("GRÖSSE", "grösse", 1),
        ("今天不好", "今天很好", 0.75),  # a character each
        ("GPT-4 很好", "GPT-4 不好", 0.75),  # but words in between are words: gpt, 4, 好 of four
        ("สวัส", "สวัสดี", 6 / 7),  # with the marks that belong to it: three of four
        ("ｆｉｎｅ", "ﬁne", 1),  # other forms of the same letters
        ("क\u200dख", "कख", 1),  # a joiner is nothing that is read
        ("नमस्ते दुनिया", "नमस्ते", 2 / 3),
        ("good 😀", "good 😡", 0.5),
        ("👍🏽", "👍🏿", 0),
        ("❤\ufe0f", "❤", 1),  # asks for colour
    ],
)
def test_rouge_l_counts_words_or_where_there_are_no_spaces_characters(prediction, target, expected):
    assert Rouge()(prediction, target) == pytest.approx(expected)


@given(text=st.text(alphabet=[chr(i) for i in range(32, 127)] + ["\n", "\t"]))
def test_text_in_ascii_is_counted_as_rouge_score_does(text):
    ours, theirs = Rouge("rougeL", "unicode")._unicode, Rouge("rougeL", "rouge_score")._scorer._tokenizer
    assert ours is not None and ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ("runs fast\n---\nand far", "runs fast\n\nand far", 1),
        ("totally wrong\n---\nanswer here", "runs fast\n---\nand far", 0),
        ("---\n***", "---\n***", 1),  # nothing but punctuation: it counts
        ("...", "---\n***", 0),
    ],
)
def test_a_line_of_punctuation_is_no_words_of_a_text_that_has_words(prediction, target, expected):
    assert Rouge("rougeLsum")(prediction, target) == expected


def test_references_decide_what_is_counted_and_the_benchmarks_own_stay_as_published():
    assert tokenizer_for(["The running dogs.", "don't – “stop”"]) == "rouge_score"
    assert tokenizer_for(["The running dogs.", "A café."]) == "unicode"
    assert tokenizer_for(["good 😀"]) == "unicode" == tokenizer_for(["price ↑"])
    assert tokenizer_for(["for £20-25"]) == "rouge_score"  # as E2E's figures are made
    assert rouge_tokenizer(TASKS["e2e"], [example("Café Rouge")]) == "rouge_score"
    assert rouge_tokenizer(TASKS["cola"], [example("acceptable")]) is None


@pytest.mark.parametrize(
    "texts", [("price ↑", "price ↓"), ("x ≥ 5", "x ≤ 5"), ("日本 5€", "日本 5£"), ("a × b", "a ± b")]
)
def test_symbols_that_differ_are_not_the_same(texts):
    one, other = texts
    rouge = Rouge("rougeL", tokenizer_for([other]))
    assert rouge(one, other) < 1 and rouge(other, other) == 1
