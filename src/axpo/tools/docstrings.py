"""A docstring in Google's style describes a function and its arguments; here it is read."""

from __future__ import annotations

import inspect
import re

_HEADER = re.compile(
    r"(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?|Attributes|Warns):"
)
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


def parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description (all text before the first section), and each argument's by its name."""
    description: list[str] = []
    arguments: dict[str, list[str]] = {}
    section: str | None = None
    indent: int | None = None
    current: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if header := _HEADER.fullmatch(line.rstrip()):
            section, indent = header[1], None
        elif section is None:
            description.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            indent = depth if indent is None else indent
            found = _ARGUMENT.fullmatch(line.strip()) if depth <= indent else None
            if found:
                current = arguments.setdefault(found[1], [])
                current.append(found[2])
            else:
                current.append(line.strip())
    described = {name: " ".join(lines).strip() for name, lines in arguments.items()}
    return "\n".join(description).strip(), described
