"""A report as one HTML page that needs nothing beside it: style, script and figures stand in the file."""

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
    """The page. `svgs`: the figures that were drawn, by section and name; `without`: why there are none."""
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
    # Everything is escaped but what is Markup: names in result files are anybody's text.
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
    """Our own sentences: `code` and *emphasis* are marked up, all else is escaped."""
    html = re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html))


def _head(table: Table) -> list[tuple[str, int]]:
    """`(heading over several columns, how many)`, empty where no column has one."""
    if not any(column.group for column in table.columns):
        return []
    groups = itertools.groupby(table.columns, key=lambda column: column.group)
    return [(name, len(list(columns))) for name, columns in groups]


def _sort_key(value: Value) -> str:
    """The text by which the page's script sorts a table's entry; empty if it is missing, and then it stays last."""
    if value.value is None or value.value == "":
        return ""
    return repr(float(value.value)) if isinstance(value.value, int | float) else value.value.lower()
