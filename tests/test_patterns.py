"""Patterns match as Python's `re` does, and time out instead of taking exponential time."""

import time

import pytest

from jpeft.errors import UserError
from jpeft.patterns import Pattern


def test_an_expression_that_never_ends_is_given_up():
    pattern = Pattern("(a|a)*[bc]", what="adapter_config.json: target_modules")
    started = time.process_time()
    for _ in range(3):  # all texts together have one limit
        with pytest.raises(UserError, match="adapter_config.json: target_modules .* takes more than"):
            pattern.fullmatch("a" * 200)
    assert time.process_time() - started < 4  # of its own time: the machine may be busy


def test_what_is_no_expression_or_too_long_is_refused():
    for expression in ("(", "[", "*a", "(" * 1500):
        with pytest.raises(UserError, match="is not a regular expression"):
            Pattern(expression, what="method.pattern")
    for expression in ("(((a{1000}){1000}){1000}){1000}", "(a{,99999})", "(a{2,300}){300,}"):
        with pytest.raises(UserError, match="repeats parts more than 10,000 times"):
            Pattern(expression, what="method.pattern")
    with pytest.raises(UserError, match="3,000 characters"):
        Pattern("a" * 3000, what="method.pattern")


def test_it_matches_whole_texts_as_re_does():
    pattern = Pattern(r".*\.(?!lm_head)(q|v)$", what="x")
    assert pattern.fullmatch("encoder.block.0.q") and not pattern.fullmatch("encoder.q.lm_head")
    assert Pattern(r"(?P<index>\d+)", what="x").match("12ab")["index"] == "12"
