"""A report in a terminal."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jpeft.report.document import Document
from jpeft.report.findings import Finding
from jpeft.report.table import Table, show

_STYLES = {"best": "bold", "good": "green", "bad": "bold red", "weak": "dim", "": ""}
_VERDICTS = {
    "holds": "green",
    "mostly holds": "green",
    "mixed": "yellow",
    "does not hold": "red",
    "within the spread": "yellow",
    "cannot be said": "dim",
}


def print_document(document: Document, console: Console, *, brief: bool = False) -> None:
    """Prints the tables and the findings; where `brief`, headings, cautions, findings and a user's own results."""
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
                    console.print(_table(block))


def _finding(finding: Finding) -> Text:
    style = _VERDICTS[finding.verdict]
    return Text.assemble((f"{finding.verdict}", f"bold {style}".strip()), f"  {finding.claim}: {finding.summary}")


def _table(table: Table) -> RichTable:
    shown = RichTable(title=Text(table.title, "bold"), title_justify="left", caption_justify="left")
    for column in table.columns:
        shown.add_column(Text(column.full_name), justify="left" if column.style == "text" else "right")
    for row in table.rows:
        cells = []
        for column, value in zip(table.columns, row, strict=True):
            entry = show(value, column.style)
            text = Text(entry.main, "dim" if value.value is None else _STYLES[value.tone])
            for extra in (entry.spread, entry.published):
                text.append(f"\n{extra}" if extra else "", "dim")
            cells.append(text)
        shown.add_row(*cells)
    return shown
