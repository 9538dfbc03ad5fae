"""Tables that grow on the console while their rows are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from trajectory.progress import progress_bar

Row = dict[str, Any]
Columns = Mapping[str, str | Callable[[Row], str]]  # by name: a row's key, or what makes its cell
Case = TypeVar("Case")


def measure_all(name: str, cases: Sequence[Case], measure: Callable[[Case], Row], columns: Columns) -> list[Row]:
    """Measure case after case, a bar below the table, and print each row as it is done."""
    rows = []
    with progress_bar(cases, unit="case", desc=name, leave=False) as bar:
        bar.write(_line(list(columns), columns))
        for case in bar:
            rows.append(measure(case))
            bar.write(_line([_cell(rows[-1], column) for column in columns.values()], columns))
    return rows


def _cell(row: Row, column: str | Callable[[Row], str]) -> str:
    return str(row[column]) if isinstance(column, str) else column(row)


def _line(cells: Sequence[str], columns: Columns) -> str:
    """Cells right-aligned under the names of their columns."""
    return "  ".join(cell.rjust(max(len(name), 6)) for cell, name in zip(cells, columns, strict=True))
