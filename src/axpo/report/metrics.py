"""A run's numbers: append-only `metrics.jsonl`, TensorBoard beside it when asked for.

Each line is one JSON object: `kind` ("sft", "rl", ...), `step`, `time` (epoch seconds) and numbers.
A line of the kind "validation" is of the weights after `step` steps, an evaluation while training.
Each line is one write, so a killed process or a full disk loses at most the line being written. A
resumed run first drops the lines that it will write again. NaN and infinities become null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from axpo.errors import MetricsError
from axpo.extras import require
from axpo.folder import RunFolder, write_whole, writing


class MetricsWriter:
    """Appends metric lines to `run_dir`; a context manager.

    Call `resume(kind, step)` before the first write of a run that goes on from `step`. Raises
    `ConfigError` at once if TensorBoard is asked for and not installed.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = False) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(run_dir)
        self.path = folder.metrics
        self._summary = _summary_writer() if tensorboard else None
        self._board_dir = folder.tensorboard
        self._boards: dict[str, Any] = {}
        self._purge: dict[str, int] = {}
        _drop(self.path, lambda _: False)
        self._file = self._open()

    def resume(self, kind: str, step: int) -> None:
        """Drop the lines of `kind` from `step` on: they will be written again."""
        self._file.close()
        _drop(self.path, lambda line: line.get("kind") == kind and line.get("step", -1) >= step)
        self._file = self._open()
        self._purge[kind] = step

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. Each value must be a number."""
        now = time.time()
        line: dict[str, Any] = {"kind": kind, "step": step, "time": round(now, 3)}
        for name, value in metrics.items():
            if name in ("kind", "step", "time"):
                raise MetricsError(f"metric {name!r}: the name is taken by the line's own fields")
            number = float(value)
            line[name] = number if math.isfinite(number) else None
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        with writing(self.path):
            while text:
                text = text[self._file.write(text) :]
        if self._summary is not None:
            board = self._board(kind)
            with writing(self._board_dir):
                for name, value in metrics.items():
                    board.add_scalar(name, float(value), step, walltime=now)
                board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()

    def _open(self) -> FileIO:
        """The file, unbuffered: what a full disk refused must not be tried again at closing."""
        with writing(self.path):
            return self.path.open("ab", buffering=0)

    def _board(self, kind: str) -> Any:
        if kind not in self._boards:
            assert self._summary is not None
            folder = str(self._board_dir / kind)
            self._boards[kind] = self._summary(folder, purge_step=self._purge.get(kind))
        return self._boards[kind]


def read_metrics(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The run's metric lines in file order, of one `kind` or of all; null is read as NaN.

    A torn last line is left out; a damaged line elsewhere raises `MetricsError`, which names it.
    """
    path = RunFolder(run_dir).metrics
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, 1):
        line = _parse(text)
        if line is None:
            if number == len(lines):
                break
            raise MetricsError(f"{path}:{number}: not a metrics line: {text[:60]!r}")
        if kind is None or line.get("kind") == kind:
            rows.append({k: math.nan if v is None else v for k, v in line.items()})
    return rows


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _drop(path: Path, unwanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite the file without `unwanted` lines and without a torn last line, if it has any."""
    if not path.is_file():
        return
    before = path.read_text(encoding="utf-8", errors="replace")
    kept = ""
    for text in before.splitlines(keepends=True):
        line = _parse(text)
        if line is not None and text.endswith("\n") and not unwanted(line):
            kept += text
    if kept != before:
        write_whole(path, kept)


def _summary_writer() -> Any:
    require("tensorboard", "run.tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
