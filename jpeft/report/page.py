"""Renders a report as one HTML page with style, script and figures embedded."""

import functools
import itertools
import re
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from jpeft.report.document import Document
from jpeft.report.findings import FINDINGS_NOTE
from jpeft.report.table import Table, Value, show


def render(document: Document, svgs: dict[tuple[str, str], str], *, without: str | None = None) -> str:
    """Renders a report.

    Args:
      svgs: the drawn figures, by section and name.
      without: the reason, if figures were not drawn.
    """
    return _template().render(
        document=document,
        svgs={name: Markup(svg) for name, svg in svgs.items()},
        without=without,
        findings_note=FINDINGS_NOTE,
        style=Markup(_file("page.css")),
        script=Markup(_file("page.js")),
    )


@functools.cache
def _template() -> jinja2.Template:
    # Everything except Markup is escaped: names in result files are untrusted.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["prose"] = _prose
    environment.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.globals.update(show=show, head=_head, sort_key=_sort_key)
    return environment.from_string(_file("page.html.jinja"))


def _file(name: str) -> str:
    return resources.files("jpeft.report").joinpath(name).read_text(encoding="utf-8")


def _prose(text: str) -> Markup:
    """Escapes a sentence of the report, and marks up its `code` and *emphasis*."""
    html = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html))


def _head(table: Table) -> list[tuple[str, int]]:
    """`(heading, number of columns that it spans)`; empty if no column has such a heading."""
    if not any(column.group for column in table.columns):
        return []
    groups = itertools.groupby(table.columns, key=lambda column: column.group)
    return [(name, len(list(columns))) for name, columns in groups]


def _sort_key(value: Value) -> str:
    """The key by which the page's script sorts an entry; empty for a missing one, which is sorted last."""
    if value.value is None or value.value == "":
        return ""
    return repr(float(value.value)) if isinstance(value.value, int | float) else value.value.lower()
