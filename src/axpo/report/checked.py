"""What the rows of benchmarks are, as text (`axpo bench --check`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from axpo.report.live import output_console
from axpo.tasks.benchmarks.checking import Checked


def print_checked(found: Sequence[Checked]) -> None:
    """Print each source: its columns, first rows and largest picture, and what differs."""
    console = output_console()
    for one in found:
        for line in (*_lines(one), ""):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(found: Checked) -> list[str]:
    source = found.source
    where = " ".join(filter(None, (source.hub, source.subset, source.split)))
    lines = [f"{found.benchmark}: {where}, {found.rows:,} rows (expected {source.rows:,})"]
    if found.revision is not None:
        pinned = "pinned" if found.revision == source.revision else "not pinned"
        lines.append(f"  revision {found.revision} ({pinned})")
    lines += [f"  column {name}: {_kinds(kinds)}" for name, kinds in found.columns.items()]
    for number, sample in enumerate(found.samples):
        lines.append(f"  row {number}")
        lines += [f"    {name}: {value}" for name, value in sample.items()]
    if found.largest is not None:
        width, height, place = found.largest
        lines.append(f"  {found.pictures:,} pictures, the largest {width} x {height} ({place})")
    return [*lines, *(f"  DIFFERS: {text}" for text in found.differs)]


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} x {count:,}" for kind, count in kinds.most_common())
