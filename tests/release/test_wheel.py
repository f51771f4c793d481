"""The built files alone: what is in them, what each extra brings, the quickstart to its report.

`make test-wheel` builds them and names their folder in AXPO_DIST. Everything is installed anew,
with pip, into environments that know nothing of the checkout: one with axpo and no extra, and on
top of it a small one for each extra with what its `pip install` adds. Needs the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DIST = Path(os.environ.get("AXPO_DIST", ""))
pytestmark = pytest.mark.skipif(
    "AXPO_DIST" not in os.environ, reason="`make test-wheel` builds what is tested here"
)
ROOT = Path(__file__).parents[2]
SHORT = (
    "sft.steps=2", "sft.batch=6", "rl.steps=2", "rl.questions=6", "algorithm.rollouts=4",
    "eval.questions=6", "eval.samples=4", "eval.prefixes=2", "eval.prefix_samples=2",
)  # fmt: skip
"""The quickstart's shortest form: every stage does something, with each family and tool."""
SCRIPT = """
import asyncio, sys
from pathlib import Path
from axpo.checks import check_names
from axpo.config import load_config
from axpo.errors import UserError

def lab():
    task = load_config("lab").task
    task.check()
    task.example("sft", 0)

def sandbox():
    from axpo.sandbox import levels
    if not levels.programs():
        raise UserError(levels.obstacle("bubblewrap"))

def data():
    Path("hub").mkdir(exist_ok=True)
    Path("hub/train.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\\n')
    task = load_config("task={name='data', hub='hub'}").task
    assert task.example("train", 0).answer == "2"

def lora():
    check_names(load_config("lab", "model.lora={}"), "sft")
    from axpo.models.lora import add_adapters
    import peft

def tracking():
    check_names(load_config("lab", "run.tensorboard=true"), "train")
    from axpo.report.metrics import MetricsWriter
    with MetricsWriter(Path("board"), tensorboard=True) as writer:
        writer.write("rl", 0, {"reward": 1.0})

def search():
    from axpo.tasks.lab import GALLERY
    from axpo.search.gallery import Gallery
    from axpo.search import tavily
    tavily.URL = "http://127.0.0.1:9"
    asyncio.run(tavily.Tavily().start())
    asyncio.run(Gallery(GALLERY).start())

def gym():
    task = load_config("task={name='reasoning_gym', sets=[{name='gcd'}]}").task
    task.check()
    task.example("train", 0)

def gguf():
    from axpo.errors import CheckpointError
    from axpo.models.paths import model_path
    Path("model.gguf").write_bytes(b"GGUF, and no more")
    try:
        model_path("model.gguf")
    except CheckpointError:
        return
    raise AssertionError

def cluster():
    check_names(load_config("lab", "cluster.trainers=1"), "sft")
    from axpo.cluster import learner, servers

def mcp():
    from axpo.build.tools import recipe_tools
    server = f"tools.mcp=[{{command=['{sys.executable}', '{sys.argv[2]}']}}]"
    assert len(recipe_tools(load_config(server))) > 1

try:
    globals()[sys.argv[1]]()
except UserError as error:
    sys.exit(f"UserError: {error}")
"""
"""For each extra something that needs it: a `UserError` where it is missing."""
NO_SANDBOX = """
from axpo.sandbox.inside import landlock
landlock.abi = lambda: 4
"""
"""A `sitecustomize` for every process: the kernel is Linux 6.7's, as far as Landlock goes."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment; commands run in a folder of their own."""

    folder: Path
    work: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python*/site-packages")
        return site

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; nothing of the checkout or the system is in reach."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"PATH": str(self.folder / "bin"), "TAVILY_API_KEY": "tvly-x"} | variables
        program, *arguments = command
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=self.work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For environments of a gigabyte: removed at once, where pytest keeps the last three."""
    with tempfile.TemporaryDirectory(prefix="axpo-wheel-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def wheel() -> Path:
    (file,) = DIST.glob("axpo-*.whl")
    return file


def pip(python: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*command, "-c", ROOT / "constraints.txt", *arguments], check=True)


@pytest.fixture(scope="module")
def base(folder: Path, wheel: Path) -> Environment:
    """axpo as `pip install axpo` gives it."""
    began = time.monotonic()
    made = _environment(folder / "base")
    pip(made.python, wheel)
    print(f"\naxpo installed: {time.monotonic() - began:.0f} s")
    return made


@pytest.fixture(scope="module")
def on_top(folder: Path, base: Environment) -> Callable[..., Environment]:
    """Makes an environment on top of `base`, with requirements of its own."""

    def make(name: str, *requirements: str | Path) -> Environment:
        began = time.monotonic()
        made = _environment(folder / name)
        (made.site / "base.pth").write_text(f"{base.site}\n")
        pip(made.python, *requirements)
        print(f"\n{name} installed: {time.monotonic() - began:.0f} s")
        return made

    return make


def _environment(folder: Path) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir()
    return Environment(folder, work)


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(filter(None, listed.stdout.split("\0")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name.removeprefix("src/") for name in tracked("src/axpo")}
    for name in ("recipes/lab.toml", "tasks/lab/base/model.safetensors", "py.typed"):
        assert f"axpo/{name}" in held


def test_the_source_distribution_holds_the_repository() -> None:
    (file,) = DIST.glob("axpo-*.tar.gz")
    with tarfile.open(file) as archive:
        held = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert held == tracked() | {"PKG-INFO"}


def test_every_module_imports_without_extras(base: Environment) -> None:
    """But for those that are an extra's own, or run in vLLM's environment."""
    done = base.run(
        "python", "-c",
        "import axpo, importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(axpo.__path__, 'axpo.'):\n"
        "    apart = ('axpo.__main__', 'axpo.tools.mcp', 'axpo.engines.vllm.worker')\n"
        "    if module.name not in apart and not module.name.startswith('axpo.cluster.'):\n"
        "        importlib.import_module(module.name)\n"
        "print(axpo.__file__)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(base.folder)


def test_the_command_line_without_extras(base: Environment) -> None:
    assert base.run("axpo", "--version").stdout == f"axpo {_version(base)}\n"
    assert "\nlab " in base.run("axpo", "recipes").stdout
    for command in ("quickstart", "sft"):
        done = base.run("axpo", command, *(["lab"] if command == "sft" else []), "--out", "run")
        assert done.returncode == 1 and "pip install 'axpo[lab]'" in done.stderr, done.stderr
        assert not (base.work / "run").exists()


def test_the_shipped_study_has_its_tables_without_the_repository(base: Environment) -> None:
    """From recorded outcomes; the paper's page, which is in the repository alone, is refused."""
    out = base.work / "study"
    out.mkdir()
    for name in ("study.json", "outcomes.csv"):
        shutil.copy(ROOT / "docs" / "study" / name, out)
    command = ("axpo", "study", "study", "--out", "study", "--outcomes")
    done = base.run(*command)
    assert done.returncode == 0, done.stderr
    page = (out / "study.md").read_text()
    for section in ("## Held out", "## Comparisons", "## Diagnostics", "## Cost of training"):
        assert section in page
    assert (out / "families.png").is_file() and "*paper*" not in page
    refused = base.run(*command, "page=studies.axpo_paper:PaperPage")
    assert refused.returncode == 1 and "page: " in refused.stderr, refused.stderr
    assert "there is no module 'studies'" in refused.stderr
    assert (out / "study.md").read_text() == page


@pytest.mark.parametrize(
    "extra",
    ["lab", "sandbox", "data", "lora", "tracking", "search", "mcp", "gym", "gguf", "cluster"],
)
def test_each_extra_alone_brings_what_it_promises(
    extra: str, base: Environment, on_top: Callable[..., Environment]
) -> None:
    asked = ("python", "-c", SCRIPT, extra, ROOT / "tests" / "support" / "mcp_server.py")
    without = base.run(*asked)
    assert without.returncode == 1 and "Traceback" not in without.stderr, without.stderr
    assert f"pip install 'axpo[{extra}]'" in without.stderr
    done = on_top(extra, f"axpo[{extra}]").run(*asked)
    assert done.returncode == 0, done.stderr


def _version(environment: Environment) -> str:
    code = "import importlib.metadata as m; print(m.version('axpo'))"
    return environment.run("python", "-c", code).stdout.strip()


def quickstart(environment: Environment, **variables: str) -> tuple[str, list[dict], str]:
    """Run it in an empty folder: what it printed, its stages' settings, its report."""
    began = time.monotonic()
    done = environment.run("axpo", "quickstart", *SHORT, **variables)
    print(f"\nquickstart: {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stderr
    out = environment.work / "runs" / "quickstart"
    stages = [json.loads((out / n / "config.json").read_text()) for n in ("sft", "grpo", "axpo")]
    return done.stdout, stages, (out / "report.html").read_text()


def test_the_quickstart_from_the_wheel_alone(
    wheel: Path, on_top: Callable[..., Environment]
) -> None:
    lab = on_top("quickstart", "--force-reinstall", "--no-deps", wheel)
    pip(lab.python, "axpo[lab]")
    said, stages, report = quickstart(lab)
    assert said.splitlines()[-1] == "Report: runs/quickstart/report.html"
    assert "no sandbox for Python" not in said
    assert all("python" in settings["rollout"]["tools"] for settings in stages)
    assert "GRPO" in report and "AXPO" in report and "no sandbox for Python" not in report


def test_the_quickstart_where_there_is_no_sandbox(
    wheel: Path, on_top: Callable[..., Environment]
) -> None:
    """No bubblewrap, and a kernel whose Landlock is too old: two families, and everyone is told."""
    old = on_top("old", "--force-reinstall", "--no-deps", wheel)
    pip(old.python, "scikit-learn")  # the extra "lab" without bubblewrap
    (old.work / "sitecustomize.py").write_text(NO_SANDBOX)
    said, stages, report = quickstart(old, PYTHONPATH=str(old.work))
    first = said.splitlines()[0]
    assert "no bwrap program" in first and "Landlock ABI 4" in first and "calculate" in first
    for settings in stages:
        assert settings["rollout"]["tools"] == ["image_zoom_in_tool", "web_search"]
        assert settings["task"]["families"] == ["find", "look_up"]
        assert settings["run"]["note"] == first
    assert "no sandbox for Python" in report and "Landlock ABI 4" in report
