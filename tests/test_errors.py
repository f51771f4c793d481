"""The error classes: the tree that `axpo.errors` draws is the one that it has, and it has all."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

from axpo import errors

SRC = Path(errors.__file__).parent
ELSEWHERE = {
    "PictureError": "pictures.py",
    "SandboxFault": "sandbox/errors.py",
    "BadAnswer": "sandbox/session.py",  # raised and caught there
    "Enough": "report/profile.py",  # as well
    "Declined": "chat/client.py",  # leaves it for the engine `chat` alone
    "TooLarge": "tasks/grading/arithmetic.py",  # inside the math grader's worker alone
    "Undefined": "tasks/grading/arithmetic.py",
    "Unreadable": "tasks/grading/expressions.py",
}


def drawn() -> dict[str, list[str]]:
    """Class -> the bases that the docstring's tree gives it, in its order."""
    found: dict[str, list[str]] = {}
    above: list[str] = []
    for line in inspect.getdoc(errors).splitlines():
        if match := re.match(
            r"    ((?:│   |    |├── |└── )*)(\w+)(?: \((\w+)\))?(?: {2,}|$)", line
        ):
            branch, name, outside = match.groups()
            del above[len(branch) // 4 :]
            found.setdefault(name, []).append(outside or (above[-1] if above else "Exception"))
            above.append(name)
    return found


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {
        name: [base.__name__ for base in value.__bases__]
        for name, value in vars(errors).items()
        if inspect.isclass(value)
    }
    assert {name: sorted(bases) for name, bases in drawn().items()} == {
        name: sorted(bases) for name, bases in real.items()
    }
    assert drawn()["NoDataError"] == ["MissingError", "DataError"]  # the parser sees both places


def test_no_other_module_defines_an_error() -> None:
    known = {name for name in vars(builtins) if inspect.isclass(getattr(builtins, name))}
    raised = {n for n in known if issubclass(getattr(builtins, n), BaseException)} | set(drawn())
    found = {
        node.name: file.relative_to(SRC).as_posix()
        for file in SRC.rglob("*.py")
        if file != Path(errors.__file__)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in raised for base in node.bases)
    }
    assert found == ELSEWHERE
