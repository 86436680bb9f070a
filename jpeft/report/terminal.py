"""Prints a report to a terminal, with tables that fit its width."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jpeft.report.document import Document
from jpeft.report.findings import Finding
from jpeft.report.table import Column, Table, Value, show
from jpeft.words import counted

_STYLES = {"best": "bold", "good": "green", "bad": "bold red", "weak": "dim", "": ""}
_SHORT_LINE = 10  # characters: `se 0.0141`
_VERDICTS = {
    "holds": "green",
    "mostly holds": "green",
    "mixed": "yellow",
    "does not hold": "red",
    "within the spread": "yellow",
    "cannot be said": "dim",
}


def print_document(document: Document, console: Console, *, brief: bool = False) -> None:
    """Prints a report; if `brief`, only headings, cautions, findings and a user's own results."""
    for section in document.sections:
        console.print(Text(f"\n{section.heading}", "bold underline"))
        for what, value in section.facts:
            console.print(Text.assemble((f"{what}  ", "dim"), value))
        for caution in section.cautions:
            console.print(Text.assemble(("mind: ", "bold yellow"), caution))
        for remark in section.remarks:
            console.print(Text(f"\n{remark}"))
        for part in section.parts_and_findings():
            if part is None:
                console.print(Text("\nThe paper's findings", "bold"))
                for finding in section.findings:
                    console.print(_finding(finding))
                continue
            for block in part[1]:
                if isinstance(block, Table) and (not brief or block.name == "own-results"):
                    console.print()
                    console.print(_table(block, console.width))


def _finding(finding: Finding) -> Text:
    style = _VERDICTS[finding.verdict]
    return Text.assemble((f"{finding.verdict}", f"bold {style}".strip()), f"  {finding.claim}: {finding.summary}")


def _table(table: Table, width: int) -> RichTable:
    """A table of as many columns as fit without breaking words or numbers; the number of others is noted below it."""
    shown = [[_entry(column, value) for column, value in zip(table.columns, row, strict=True)] for row in table.rows]
    columns = [[column.full_name, *(row[i].plain for row in shown)] for i, column in enumerate(table.columns)]
    least = [max(len(part) for text in texts for part in _unbroken(text)) for texts in columns]
    whole = [max(len(line) for text in texts for line in text.split("\n")) for texts in columns]
    fits = len(columns)
    while fits > 2 and sum(least[:fits]) + 3 * fits + 1 > width:
        fits -= 1
    room = max(0, width - sum(least[:fits]) - 3 * fits - 1)
    widths = []
    for part, most in zip(least[:fits], whole, strict=False):  # the rest goes to the first columns, which are text
        widths.append(part + min(room, most - part))
        room -= widths[-1] - part
    more = f"{counted(len(columns) - fits, 'more column')} in --out and --json" if fits < len(columns) else None
    made = RichTable(
        title=Text(table.title, "bold"), title_justify="left", caption=more and Text(more), caption_justify="left"
    )
    for column, wide in zip(table.columns, widths, strict=False):
        justify = "left" if column.style == "text" else "right"
        made.add_column(Text(column.full_name), justify=justify, width=max(1, wide), overflow="fold")
    for row in shown:
        made.add_row(*row[:fits])
    return made


def _unbroken(text: str) -> list[str]:
    """The parts of an entry that must not be broken: words, and short lines."""
    return [part for line in text.split("\n") for part in ([line] if len(line) <= _SHORT_LINE else line.split())]


def _entry(column: Column, value: Value) -> Text:
    entry = show(value, column.style)
    text = Text(entry.main, "dim" if value.value is None else _STYLES[value.tone])
    for extra in (entry.spread, entry.published):
        text.append(f"\n{extra}" if extra else "", "dim")
    return text
