"""What a Mac lacks, as far as it can be taken away here: every module imports, the lab trains.

Never run on a Mac. A process first imports the libraries, which have builds of their own there, and
then loses what Linux alone has: the names of the system, /proc and /sys, `prctl`, the system calls
of the sandbox, and functions of `os`, `signal` and `socket`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAC = """
import os, platform, signal, socket, sys
import torch, transformers, PIL.Image, scipy.stats, matplotlib.pyplot, pyarrow.parquet, renderers
import sklearn.datasets, rich.live, pydantic, httpx, jinja2, math_verify, safetensors.torch, typer
import torch._dynamo, transformers.models.qwen3_vl.modeling_qwen3_vl
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

sys.platform = "darwin"
platform.system, platform.machine = lambda: "Darwin", lambda: "arm64"
for module, names in (
    (os, "sched_getaffinity sched_setaffinity pidfd_open memfd_create posix_fadvise eventfd "
         "P_PIDFD O_PATH O_TMPFILE SCHED_OTHER"),
    (signal, "pidfd_send_signal SIGPWR SIGRTMIN"),
    (socket, "SOCK_SEQPACKET AF_NETLINK SO_PEERCRED"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def elsewhere(path):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", path)

def absent(event, arguments):
    if event == "open":
        elsewhere(arguments[0])
    if event == "ctypes.dlsym" and arguments[1] in ("prctl", "syscall"):
        raise AttributeError(arguments[1])

def stat(path, *arguments, stat=os.stat, **options):
    elsewhere(path)
    return stat(path, *arguments, **options)

os.stat = stat
sys.addaudithook(absent)
"""
IMPORTS = """
import axpo, importlib, pkgutil
for module in pkgutil.walk_packages(axpo.__path__, "axpo."):
    if module.name not in ("axpo.__main__", "axpo.engines.vllm.worker"):
        importlib.import_module(module.name)
print(sum(name.startswith("axpo.") for name in sys.modules))
"""
TRAINING = """
from axpo.cli.commands import app
from axpo.config import load_config
from axpo.quickstart import without_sandbox
from axpo.stages import Stage, run_stages, usable_cores
from pathlib import Path
reduced = without_sandbox(load_config("lab"), ["lab"], Path("run"))
small = ["sft.steps=1", "sft.batch=4", "rl.steps=1", "rl.questions=4", "rl.updates=1",
         "algorithm.rollouts=2", "eval.questions=2", "eval.samples=4"]
settings = [*reduced, *small]
app(["sft", "lab", *settings, "--out", "sft"], standalone_mode=False)
app(["train", "lab", *settings, "model.path=sft", "--out", "axpo"], standalone_mode=False)
app(["eval", "lab", *settings, "model.path=axpo", "--out", "axpo"], standalone_mode=False)
stages = [Stage("help", ["--help"], Path("stage"), "rl", 1, 1.0)]
assert run_stages(stages, Path("logs"), "stages") == [] and usable_cores() == os.cpu_count()
"""


def test_every_module_imports_and_the_reduced_lab_trains(tmp_path: Path) -> None:
    """In one process: the libraries take it longest."""
    pytest.importorskip("mcp")
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-c", MAC + IMPORTS + TRAINING], cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported, first, *_ = done.stdout.splitlines()
    assert int(imported) > 100
    assert "it needs Linux on x86_64 or aarch64" in first and "Darwin on arm64" in first
    assert (tmp_path / "axpo" / "evaluation.json").is_file()
