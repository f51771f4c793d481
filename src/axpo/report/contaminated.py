"""What is a benchmark's among the rows to train on, in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.report.live import output_console

if TYPE_CHECKING:
    from axpo.contamination.find import Found

COLUMNS = ("row", "benchmark", "its row", "rule", "distance")


def print_contaminated(found: Found, out: Path | None) -> None:
    """Print the first pairs, how many there are, and where all of them are."""
    console = output_console()
    table = Table(*COLUMNS, box=SIMPLE_HEAD)
    for one in found.first:
        values = (one.place, one.benchmark, one.row, one.rule, f"{one.distance:g}")
        table.add_row(*map(Text, values))
    if found.first:
        console.print(table)
    if found.pairs > len(found.first):
        where = out or "the file of --out"
        more = f"  and {found.pairs - len(found.first):,} more pairs in {where}"
        console.print(Text(more, "bright_black"), soft_wrap=True)
    print_count(console, found)


def print_count(console: Console, found: Found) -> None:
    """Print how many rows are a benchmark's, and the pairs of each benchmark."""
    console.print(Text(str(found), "bold red" if found.pairs else ""), soft_wrap=True)
    for name, (pairs, rows) in found.against.items():
        console.print(Text(f"  {name}: {pairs:,} pairs, {rows:,} rows"), soft_wrap=True)
