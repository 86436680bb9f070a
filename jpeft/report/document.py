"""The content of a report, independent of its format: sections of cautions, findings, tables and figures."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from jpeft.report import consistency, tables
from jpeft.report.findings import Finding, findings
from jpeft.report.groups import Group, cautions, published_group
from jpeft.report.names import in_order
from jpeft.report.pictures import Figure, pictures
from jpeft.report.records import LeftOut
from jpeft.report.table import Table
from jpeft.words import counted


@dataclasses.dataclass(frozen=True)
class Section:
    """The tables and figures of one model on one source of data, or of the paper's check against itself.

    Attributes:
      name: anchor, and directory of its files; empty if it is the only section.
      facts: `(label, value)` lines at the top.
      cautions: warnings.
      parts: `(heading, tables and figures)`.
      findings_after: the number of parts before the findings.
    """

    name: str
    heading: str
    facts: Sequence[tuple[str, str]] = ()
    cautions: Sequence[str] = ()
    remarks: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    parts: Sequence[tuple[str, Sequence[Table | Figure]]] = ()
    findings_after: int = 0

    def parts_and_findings(self) -> list[tuple[str, Sequence[Table | Figure]] | None]:
        """The parts in order, with None in the place of the findings, if there are any."""
        parts: list[tuple[str, Sequence[Table | Figure]] | None] = list(self.parts)
        if self.findings:
            parts.insert(self.findings_after, None)
        return parts

    def tables(self) -> list[Table]:
        """The tables of its parts, in order, without those of the findings."""
        return [block for _, blocks in self.parts for block in blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        """The figures of its parts, in order."""
        return [block for _, blocks in self.parts for block in blocks if isinstance(block, Figure)]


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
      lead: paragraphs before the first section.
      left_out: files that were not used, and why.
    """

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    left_out: Sequence[LeftOut] = ()


def of_runs(groups: Sequence[Group], problems: Sequence[LeftOut]) -> Document:
    """The report of runs, with a section per group; results of different groups never share a table."""
    names = _slugs(["-".join(filter(None, (g.model, g.quantization, g.source))) for g in groups])
    count = sum(len(group.results) for group in groups)
    papers = any(group.has_papers for group in groups)
    by = "model and its bits" if any(group.quantization is not None for group in groups) else "model"
    where = f"{counted(count, 'result')} in {counted(len(groups), 'group')} (by {by}, source of the data and reading"
    lead = f"{where} of the methods)."
    if papers:
        lead = (
            f"{where} of the methods), beside the numbers of Pu, Jain, Yin and Kaplan, *Empirical Analysis of the "
            "Strengths and Weaknesses of PEFT Techniques for LLMs* (2023). A cell that was not run is missing; a "
            "table of which nothing was run is not shown."
        )
    sections = [_of_group(group, name) for group, name in zip(groups, names, strict=True)]
    title = "jpeft: results beside the paper" if papers else "jpeft: results"
    return Document(title, [lead], sections, problems)


def of_paper() -> Document:
    """The report of the paper itself: its tables recomputed from each other, its findings checked by its tables."""
    compared = consistency.comparisons()
    section = Section(
        name="paper",
        heading="The paper against itself",
        facts=[(comparison.title, comparison.summary) for comparison in compared],
        remarks=consistency.remarks(),
        findings=findings(published_group()),
        parts=[
            ("What disagrees", [consistency.disagreements(compared)]),
            ("Published tables, recomputed", [consistency.table(comparison) for comparison in compared]),
        ],
        findings_after=2,
    )
    lead = [
        "Tables 5 and 6 and the speed-ups of section 3.2 of Pu et al. (2023) are derived from Tables 1, 3 and 4. Here "
        "they are recomputed. An entry agrees when it is the recomputed one, rounded or cut to the last digit that is "
        "printed."
    ]
    return Document("jpeft: the paper's tables against each other", lead, [section])


def _of_group(group: Group, name: str) -> Section:
    drawn = pictures(group)
    own = tables.own_tables(group)
    paper: list[Table | Figure] = []
    found: list[Finding] = []
    remarks: list[str] = []
    if group.has_papers:
        for table in tables.paper_tables(group):
            paper.append(table)
            if table.name in drawn:
                paper.append(drawn.pop(table.name))
        asked = findings(group)
        found = [finding for finding in asked if finding.decides]
        silent = [finding.claim for finding in asked if not finding.decides]
        if silent:
            remarks = [f"Findings of the paper of which no cell was run: {'; '.join(silent)}."]
    figures = [figure for figure in drawn.values()]
    parts = [
        ("What was run", own),
        ("What the paper prints", paper),
        ("What the paper lacks" if paper else "More of it", [*figures, *tables.further_tables(group)]),
    ]
    return Section(
        name=name,
        heading=group.title,
        facts=_facts(group),
        cautions=cautions(group),
        remarks=remarks,
        findings=found,
        parts=[(heading, blocks) for heading, blocks in parts if blocks],
        findings_after=1 if own else 0,
    )


def _facts(group: Group) -> list[tuple[str, str]]:
    results = group.results
    seeds = sorted({result.seed for result in results})
    paper = published_group().cells
    here = sum(1 for key in paper if key in group.cells)
    shown = ", ".join(map(str, seeds[:12])) + (f" and {len(seeds) - 12} more" if len(seeds) > 12 else "")
    data = sorted({key.data for key in group.cells if key.data})
    cells = f"{counted(len(results), 'result')} in {counted(len(group.cells), 'cell')}"
    return [
        ("results", f"{cells}, {'seed' if len(seeds) == 1 else 'seeds'} {shown}"),
        *[("data", counted(len(data), "data set") if len(data) > 2 else _listed(data))] * bool(data),
        *[("cells of the paper", f"{here} of {len(paper)}")] * bool(here),
        ("parameters of the model", _listed(f"{result.total_parameters:,}" for result in results)),
        ("devices", _listed(f"{result.device_count} × {result.device}" for result in results)),
        ("finished", f"{min(r.finished for r in results)[:10]} to {max(r.finished for r in results)[:10]}"),
    ]


def _listed(values: Any) -> str:
    found = in_order(values, ())
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def _slugs(names: Sequence[str]) -> list[str]:
    """A short, unique file name for each."""
    slugs: list[str] = []
    for name in names:
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[-60:].strip("-.") or "runs"
        while slug in slugs:
            slug += "-2"
        slugs.append(slug)
    return slugs
