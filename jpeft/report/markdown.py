"""Renders a report as Markdown, with figures as files beside it."""

import html
import re

from jpeft.report.document import Document, Section
from jpeft.report.findings import FINDINGS_NOTE, Finding
from jpeft.report.table import Table, show


def render(document: Document, figure_files: dict[tuple[str, str], str]) -> str:
    """Renders a report.

    Args:
      figure_files: paths of the drawn figures, by section and figure name.
    """
    lines = [f"# {escape(document.title)}", ""]
    for paragraph in document.lead:
        lines += [paragraph, ""]
    if document.left_out:
        lines += [f"**Left out: {len(document.left_out)}**, listed at the end with the reasons.", ""]
    for section in document.sections:
        lines += _section(section, figure_files)
    if document.left_out:
        lines += ["## Left out", "", *(f"- {escape(str(problem))}" for problem in document.left_out), ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Escapes a text, which may come from a result file, so that Markdown shows it literally."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(text, quote=False))


def _section(section: Section, figure_files: dict[tuple[str, str], str]) -> list[str]:
    lines = [f"## {_prose(section.heading)}", ""]
    if section.facts:
        lines += [*(f"- {escape(what)}: {escape(value)}" for what, value in section.facts), ""]
    if section.cautions:
        lines += ["**Mind:**", "", *(f"- {_prose(caution)}" for caution in section.cautions), ""]
    for remark in section.remarks:
        lines += [_prose(remark), ""]
    for part in section.parts_and_findings():
        if part is None:
            lines += _findings(section)
            continue
        heading, blocks = part
        lines += [f"### {heading}", ""]
        for block in blocks:
            if isinstance(block, Table):
                lines += _table(block)
            elif (section.name, block.name) in figure_files:
                file = figure_files[section.name, block.name]
                lines += [f"![{block.name}]({file})", "", f"*{_prose(block.caption)}*", ""]
    if section.findings:
        lines += ["### What the findings rest on", ""]
        for finding in section.findings:
            lines += _table(finding.evidence)
    return lines


def _findings(section: Section) -> list[str]:
    lines = ["### The paper's findings", "", FINDINGS_NOTE, ""]
    for finding in section.findings:
        lines += _finding(finding)
    return lines


def _finding(finding: Finding) -> list[str]:
    lines = [f"- **{_prose(finding.claim)}: {finding.verdict}.** {_prose(finding.summary)}"]
    if finding.of_paper:
        lines.append(f"  In the paper's own tables: {_prose(finding.of_paper)}")
    return [*lines, ""]


def _table(table: Table) -> list[str]:
    align = ["---" if column.style == "text" else "---:" for column in table.columns]
    lines = [f"**{_prose(table.title)}**", ""]
    lines += [_row(escape(column.full_name) for column in table.columns), _row(align)]
    for row in table.rows:
        cells = []
        for column, value in zip(table.columns, row, strict=True):
            text = escape(show(value, column.style).line())
            cells.append(f"**{text}**" if value.tone in ("best", "bad") and text else text)
        lines.append(_row(cells))
    return [*lines, "", *(part for note in table.notes for part in (_prose(note), ""))]


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _prose(text: str) -> str:
    """Escapes a sentence of the report except for its `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        f"`{html.escape(part[1:-1], quote=False)}`" if part.startswith("`") and len(part) > 1 else escape(part)
        for part in parts
    )
