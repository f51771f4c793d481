"""What is imported is declared, an extra's absence is told by its name, the metadata agree."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import axpo
from axpo import extras
from axpo.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"axpo", "benchmarks", "lab_base", "rehearsal", "studies", "tests"}
ELSEWHERE = {"src/axpo/engines/vllm/worker.py": {"vllm"}, "src/axpo/report/cell.py": {"IPython"}}
"""Modules that run in another environment, and what is there."""
NOT_IMPORTED = {"sympy"}
"""Needed without an import of ours: the sandbox's sessions have it."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in requirements}


CORE = names(PROJECT["project"]["dependencies"])
EXTRAS = {name: names(of) for name, of in PROJECT["project"]["optional-dependencies"].items()}


def imported(file: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield node.module.partition(".")[0]


def distributions(folder: str) -> dict[str, set[str]]:
    """Third-party distribution -> the files of `folder` that import it."""
    known = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for file in (ROOT / folder).rglob("*.py"):
        where = file.relative_to(ROOT).as_posix()
        skipped = OURS | sys.stdlib_module_names | ELSEWHERE.get(where, set())
        for module in set(imported(file)) - skipped:
            (name,) = set(map(normal, known[module]))
            found.setdefault(name, set()).add(where)
    return found


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [
        ("src/axpo", [name for name in EXTRAS if name not in ("bench", "dev")]),
        ("benchmarks", ["bench"]),
        ("lab_base", ["lab"]),
        ("rehearsal", ["cluster"]),
        ("studies", []),
        ("tests", list(EXTRAS)),
    ],
)
def test_every_import_is_declared(folder: str, wanted: list[str]) -> None:
    declared = CORE.union(*(EXTRAS[name] for name in wanted))
    missing = {name: files for name, files in distributions(folder).items() if name not in declared}
    assert missing == {}


def test_every_dependency_is_imported() -> None:
    used = set(distributions("src/axpo"))
    assert used >= CORE - NOT_IMPORTED
    apart = {name for extra, of in EXTRAS.items() if extra not in ("bench", "dev") for name in of}
    found = "".join(path.read_text() for path in (ROOT / "src/axpo").rglob("*.py"))
    for name in apart - used:  # found by name, or imported by torch
        assert re.search(rf"\b{name.replace('-', '_')}\b", found), name


def test_what_an_extra_brings_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-wheel` tries each, in environments without them."""
    known = importlib.metadata.packages_distributions()
    for module, (_, extra) in extras.PACKAGES.items():
        assert normal(known[module][0]) in EXTRAS[extra]
    apart = {name for name in distributions("src/axpo") if name not in CORE}
    assert apart <= {normal(known[module][0]) for module in extras.PACKAGES}
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"^key: needs PEFT, .*: pip install 'axpo\[lora\]'$"):
        extras.require("peft", "key")


def test_the_index_page_has_no_link_that_leads_nowhere() -> None:
    """The README as the package index gets it: no picture or page of the repository."""
    text = (ROOT / "README.md").read_text()
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)\s]+)|(?:src|srcset|href)=\"([^\"]+)", text)
    assert links and all("".join(link).startswith("https://") for link in links)
    assert "](" in text and "paper map" in text and not re.search("^!", text, re.MULTILINE)


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {axpo.__version__}\n" in text
    assert PROJECT["project"]["urls"]["Paper"] in text


def test_the_package_is_typed() -> None:
    assert (ROOT / "src/axpo/py.typed").is_file()


def test_no_message_needs_the_checkout() -> None:
    """Whoever installed the wheel has no Makefile and no folder of recipes."""
    for path in (ROOT / "src/axpo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"`make |recipes/[\w/-]+\.toml", node.value), (
                    path,
                    node.value,
                )


def test_nothing_imports_from_a_test_module() -> None:
    """What tests share lies in tests/support/: a test can be read, moved and run alone."""
    for folder in ("benchmarks", "lab_base", "rehearsal", "src", "studies", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                modules = [start + alias.name for alias in node.names]
                found = [name for name in modules if re.search(r"^tests\..*\btest_", name)]
                assert not found, (path, found, "move what is shared into tests/support/")
