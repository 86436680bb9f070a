"""A report as JSON values, for `--json` and `report.json`."""

from typing import Any

from jpeft.report.document import Document, Section
from jpeft.report.findings import Finding
from jpeft.report.groups import Group, Spread
from jpeft.report.table import Table, Value


def of_document(document: Document, groups: tuple[Group, ...] | list[Group] = ()) -> dict[str, Any]:
    """Everything in the report with unrounded numbers, and for runs also every cell with its seeds."""
    return {
        "title": document.title,
        "sections": [_section(section) for section in document.sections],
        "groups": [_group(group) for group in groups],
        "left_out": [{"path": str(problem.path), "reason": problem.reason} for problem in document.left_out],
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "heading": section.heading,
        "facts": dict(section.facts),
        "cautions": list(section.cautions),
        "remarks": list(section.remarks),
        "findings": [_finding(finding) for finding in section.findings],
        "tables": [of_table(table) for table in section.tables()],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "claim": finding.claim,
        "verdict": finding.verdict,
        "summary": finding.summary,
        "of_paper": finding.of_paper or None,
        "evidence": of_table(finding.evidence),
    }


def of_table(table: Table) -> dict[str, Any]:
    """A table; an entry is its value, or an object if it has a spread or a published number."""
    return {
        "name": table.name,
        "title": table.title,
        "columns": [column.full_name for column in table.columns],
        "rows": [[_value(value) for value in row] for row in table.rows],
        "notes": list(table.notes),
    }


def _value(value: Value) -> Any:
    if value.sd is None and value.count < 2 and value.published is None and value.error is None:
        return value.value
    entry: dict[str, Any] = {"value": value.value}
    if value.sd is not None:
        entry["sd"] = value.sd
    if value.count > 1:
        entry["seeds"] = value.count
    if value.error is not None:
        entry["standard_error"] = value.error
    if value.published is not None:
        entry |= {"published": value.published, "difference": value.difference}
    return entry


def _group(group: Group) -> dict[str, Any]:
    cells = []
    for key, cell in group.cells.items():
        cells.append(
            {
                "method": key.method,
                "ablation": key.ablation or None,
                "task": key.task,
                "scale": key.scale,
                "data": key.data or None,
                "data_digest": cell.results[0].data_digest,
                "setting": cell.results[0].setting or None,
                "seeds": [result.seed for result in cell.results],
                "metric_name": cell.results[0].metric_name,
                "metric": _spread(cell.metric),
                "best_epoch": _spread(cell.best_epoch),
                "total_seconds": _spread(cell.total_seconds),
                "seconds_to_best": _spread(cell.seconds_to_best),
                "trainable_parameters": _spread(cell.parameters),
                "peak_memory_bytes": _spread(cell.mean(lambda r: r.peak_memory_bytes)),
                "adapter_bytes": _spread(cell.mean(lambda r: r.adapter_bytes)),
                "results": [str(result.path) for result in cell.results],
            }
        )
    names = {"model": group.model, "quantization": group.quantization}
    return {**names, "source": group.source, "reading": group.reading, "cells": cells}


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    known = {"mean": spread.mean, "sd": spread.sd, "seeds": spread.count, "low": spread.low, "high": spread.high}
    return known | ({} if spread.error is None else {"standard_error": spread.error})
