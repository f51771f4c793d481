"""The Python API: as the commands, from a script, a running event loop and a notebook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import axpo
from tests.support.terminal import environment

NOTEBOOK = Path(__file__).parents[2] / "docs" / "python.ipynb"
SMALL = (
    "task.families=['find']", "rollout.tools=['image_zoom_in_tool']", "rollout.max_turns=2",
    "rl.questions=2", "rl.updates=1", "algorithm.rollouts=2", "eval.questions=3", "eval.samples=2",
    "eval.k=1", "rollout.max_turn_tokens=16", "rollout.max_tokens=64",
)  # fmt: skip


def test_the_package_imports_nothing_heavy_and_lists_what_is_public() -> None:
    code = (
        "import sys, axpo\n"
        "assert set(axpo.__all__) <= set(dir(axpo))\n"
        "heavy = [n for n in ('torch', 'numpy', 'pydantic', 'rich') if n in sys.modules]\n"
        "assert not heavy, heavy\n"
        "for name in axpo.__all__: getattr(axpo, name)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    with pytest.raises(AttributeError, match="'axpo' has no attribute 'trian'"):
        axpo.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_is_trained_goes_on_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = axpo.load_config("lab", *SMALL, "rl.steps=1")
    run = axpo.train(short, out="runs/x")
    assert [(line["kind"], line["step"]) for line in run.metrics] == [("rl", 0)]
    assert run.checkpoint == Path("runs/x/checkpoints/step-000001")
    assert axpo.train(short, out="runs/x") == run
    with pytest.raises(axpo.UserError, match=r"other settings \(algorithm\.kl: 0\.001 -> 0\.0\)"):
        axpo.train(axpo.load_config("lab", *SMALL, "rl.steps=1", "algorithm.kl=0"), out="runs/x")
    config = axpo.load_config("lab", *SMALL, f"model.path={run.folder}")
    found = axpo.evaluate(config, out=run.folder)
    assert found["questions"] == 3 and "pass@1" in found["metrics"]
    assert found == json.loads(Path("runs/x/evaluation.json").read_text())
    with pytest.raises(axpo.UserError, match="no folder runs/nope"):
        axpo.train(axpo.load_config("lab", "model.path=runs/nope"), out="runs/y")
    assert not Path("runs/y").exists()


IN_A_LOOP = """
import asyncio, sys, axpo

async def cell():
    config = axpo.load_config("lab", *sys.argv[1:])
    try:
        axpo.train(config, out="runs/x")
    except KeyboardInterrupt as stopped:
        print("stopped:", stopped, flush=True)
    await asyncio.sleep(0)  # the loop goes on

asyncio.run(cell())
print("after", flush=True)
"""


def test_an_interrupt_in_a_running_loop_keeps_what_was_done(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_LOOP, *SMALL, "rl.steps=1000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs" / "x" / "metrics.jsonl"
    until = time.monotonic() + 240
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    stopped, after = said.splitlines()
    assert stopped.startswith("stopped: stopped at step ") and after == "after"
    assert "the same command goes on from there" in stopped
    done = len(metrics.read_text().splitlines())
    *_, kept = sorted((tmp_path / "runs" / "x" / "checkpoints").iterdir())
    assert kept.name == f"step-{done:06d}"


def test_the_notebook_runs_as_it_is_printed(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ.update(PYTHONPATH=environment()["PYTHONPATH"])
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert any("SFT sft" in html and "done" in html for html in drawn)
    assert any("AXPO axpo" in html and "step 2/2" in html for html in drawn)
    said = [o["text"] for o in outputs if o.get("name") == "stderr"]
    assert all("TqdmWarning" in text for text in said), said  # of transformers
    assert (tmp_path / "runs" / "notebook" / "axpo" / "evaluation.json").is_file()
