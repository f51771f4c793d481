"""The finding in a terminal: the quickstart's last screen, and what `axpo report` says."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from axpo.report.finding import Finding

WIDTH = 96
"""The most columns of a line of text; longer lines are hard to read."""
STYLES = {"better": "green", "worse": "red", "more": "bold", "less": "bold", "none": ""}


def print_finding(found: Finding) -> None:
    """Print the headline, the figures, the other sentences, and what one seed can show."""
    console = Console()
    width = min(console.width, WIDTH)

    def say(text: str, style: str = "") -> None:
        for line in Text(text, style=style).wrap(console, width - 2):
            line.rstrip()
            console.print(Text("  ").append_text(line))
        console.print()

    console.print()
    say(found.headline, "bold")
    for line in _table(found):
        console.print(Text("  ").append_text(line), crop=False)
    if found.parts:
        console.print()
    for text in found.said:
        say(text)
    for text in found.notes:
        say(text, "dim")


def _table(found: Finding) -> list[Text]:
    """The figures as lines, with their columns below each other."""
    rows = [row for part in found.parts for row in part.rows]
    first = max((len(row.label) for row in rows), default=0) + 4
    widths = [max(len(name), 4) + 3 for name in found.models]
    heads = [f"{name:>{width}}" for name, width in zip(found.models, widths, strict=True)]
    if any(row.difference for row in rows):
        heads.append(f"   {found.models[-1]} − {found.models[-2]}")
    lines = [Text(" " * first + "".join(heads), style="dim")] if rows else []
    for part in found.parts:
        lines.append(Text(part.heading, style="bold"))
        for row in part.rows:
            values = zip(row.texts, widths, strict=True)
            line = Text(f"  {row.label:<{first - 2}}")
            line.append("".join(f"{text:>{width}}" for text, width in values))
            line.append(f"   {row.difference} ", style=STYLES[row.state])
            lines.append(line.append(row.interval, style="dim"))
    return lines
