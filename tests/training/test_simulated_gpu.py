"""Runs `simulated_gpu_cases.py` in a process of its own: torch never forgets a new device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_on_a_simulated_gpu():
    cases = Path(__file__).with_name("simulated_gpu_cases.py")
    command = [sys.executable, "-m", "pytest", str(cases), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cases.parents[2])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout
