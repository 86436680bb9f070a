"""Templates: their columns, rendering, and refused syntax."""

import pytest

from jpeft.data.template import Template
from jpeft.errors import UserError


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("{input}", ("input",)),
        ("{Review Text}: {a.b} {0} {naïve-列}", ("Review Text", "a.b", "0", "naïve-列")),
        ("{{{x}}} {{y}}", ("x",)),
        ("{x} and {x}", ("x",)),
        ("{time:zone} {Why?!}", ("time:zone", "Why?!")),
        ("no column", ()),
    ],
)
def test_a_template_names_columns_as_they_are_called(text, columns):
    assert Template.parse(text).columns == columns


def test_a_template_is_filled_with_the_columns_texts_and_braces_in_them_are_text():
    fields = {"Review Text": "{a.b} {{", "a.b": "2", "0": "zero"}
    assert Template.parse("{{{Review Text}}} = {a.b}{0}}}").render(fields) == "{{a.b} {{} = 2zero}"


def test_a_template_of_another_column_keeps_its_own_text():
    template = Template.parse("{{{x}}} of {x}:\n{x}").of_other_column("the y")
    assert template.text == "{{{the y}}} of {the y}:\n{the y}"
    with pytest.raises(UserError, match="the column's name 'a}b' cannot stand in a template"):
        template.of_other_column("a}b")


@pytest.mark.parametrize(
    "template", ["{text:>1000000000}", "{text!r}", "{text:d}", "{text!s:10}", "{text:}", "{t:.3f}"]
)
def test_a_format_in_a_template_is_refused_by_name(template):
    says = r"asks for a format; write {te?x?t?}, a column's name alone; a column of the name 't.*' has to be renamed$"
    with pytest.raises(ValueError, match=says):
        Template.parse(template)


@pytest.mark.parametrize("template", ["{input", "input}", "{a {b}}", "{input:{width}}", "}{", "{{{a}}"])
def test_a_brace_that_stands_alone_is_named_with_its_place(template):
    with pytest.raises(ValueError, match=r"the brace '[{}]' at character \d+ stands alone"):
        Template.parse(template)
