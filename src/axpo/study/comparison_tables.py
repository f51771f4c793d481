"""`study.md`'s comparisons: every family of `comparisons.py` as a table."""

from __future__ import annotations

from axpo.report.names import label
from axpo.study.comparisons import MARGIN
from axpo.study.markup import Json, cell_text, p_text, rows
from axpo.wording import number_text

_NOTE = (
    "## Comparisons\n\nEach on the seeds that both have, means of those seeds first. *p* is of the "
    "comparison by itself; *Holm* corrects it for its table, and where it says so for the looks at "
    "earlier runs. *Detectable* is the true difference that 0.8 of such studies would show at the "
    "5 % level, were the spread what was measured: nothing smaller can be told from none. "
    f"*Equivalent* is the p-value of a difference of {MARGIN} or more either way (two one-sided "
    "tests, uncorrected): only where it is small has it been shown that two variants do alike."
)


def comparison_tables(found: Json) -> list[str]:
    """The section; empty where nothing was compared."""
    families = [_family(family) for family in found["comparisons"]]
    return [_NOTE, *families] if families else []


def _family(family: Json) -> str:
    head = ["", "seeds", "means", "difference", "p", "Holm", "detectable", "equivalent"]
    if not any("equivalence" in row for row in family["rows"]):
        head.pop()
    lines = [head]
    for row in family["rows"]:
        part = "" if row["part"] == "all" else f", {row['part'].removeprefix('family ')}"
        name = f"{row['second']} − {row['first']}: {label(row['metric'])}{part}"
        means = ", ".join(number_text(mean) for mean in reversed(row["means"]))
        cells = [name, str(len(row["seeds"])), means, difference_text(row)]
        cells += [_known(row, key) for key in ("p", "adjusted", "detectable", "equivalence")]
        lines.append(cells[: len(head)])
    looks = f", times {family['looks']} looks" if family["looks"] > 1 else ""
    title = f"{family['name']}, {family['outcomes']}"
    return f"{title} ({len(family['rows'])} comparisons{looks}):\n\n{rows(lines)}"


def difference_text(row: Json) -> str:
    """The difference with its interval."""
    return cell_text({k: v for k, v in row.items() if k in ("value", "low", "high")}, signed=True)


def _known(row: Json, key: str) -> str:
    return p_text(row[key]) if key in row else "–"
