"""A table as two files: STEM.csv for programs, STEM.md for people, with where the numbers come from.

Does not cover: what stands in it, and where numbers come from (`provenance`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medenv.runs.records import write_atomically

Row = Mapping[str, Any]


def write_table(stem: Path, rows: Sequence[Row], notes: Sequence[str], sources: Sequence[str]) -> None:
    """Write STEM.csv and STEM.md: the rows (columns in the order of their first use, None is an empty cell), notes above, sources below."""
    columns = columns_of(rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(stem.with_name(f"{stem.name}.csv"), table.getvalue())
    text = [f"# {stem.name.replace('_', ' ')}", "", *notes, "", *markdown_lines(rows), "", *(f"- {line}" for line in sources)]
    write_atomically(stem.with_name(f"{stem.name}.md"), "\n".join(text) + "\n")


def markdown_lines(rows: Sequence[Row]) -> list[str]:
    """The rows as the lines of a Markdown table."""
    columns = columns_of(rows)
    cells = [[cell_text(r.get(c)).replace("|", "\\|") for c in columns] for r in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *("| " + " | ".join(c) + " |" for c in cells)]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns, in the order of their first use."""
    return list(dict.fromkeys(k for r in rows for k in r))


def cell_text(value: Any) -> str:
    """A cell as it is read; None, what there is not, is empty."""
    return "" if value is None else str(value)
