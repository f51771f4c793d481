"""A run's folder belongs to one command at a time, and its files are whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from axpo.config import UserError
from axpo.folder import files_digest, run_folder, write_whole
from axpo.tasks.lab import BASE

HOLD = "import sys, pathlib, axpo.folder as f\nwith f.run_folder(pathlib.Path(sys.argv[1])):\n"


def test_a_second_command_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    code = f"{HOLD}    print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"in\n"
        refused = pytest.raises(UserError, match=rf"process {first.pid}\) works in this folder")
        with refused, run_folder(tmp_path):
            raise AssertionError("two in one folder")
        first.kill()
        first.wait()
    with run_folder(tmp_path):  # the lock ended with its process
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_commands_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    """The command line itself, for a command that reads much before it writes."""
    out = tmp_path / "run"
    with run_folder(out):
        done = subprocess.run(
            [sys.executable, "-m", "axpo", "train", "lab", "--out", str(out)],
            capture_output=True, text=True, cwd=BASE.parents[4], env=os.environ,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"axpo: {out}: another axpo command (process {os.getpid()})" in done.stderr
    assert not (out / "config.json").exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(UserError, match=r"--out .*run: cannot be made or written to \(File exists"),
        run_folder(tmp_path / "run"),
    ):
        pass


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"), run_folder(tmp_path / "run"):
        raise UserError("no such model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError), run_folder(tmp_path / "run"):
        raise UserError
    assert (tmp_path / "run").is_dir()
    with pytest.raises(UserError), run_folder(tmp_path / "other"):
        (tmp_path / "other" / "config.json").write_text("{}")
        raise UserError
    assert (tmp_path / "other" / "config.json").is_file()


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    write_whole(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud83d")
    assert file.read_text() == "first"
    write_whole(file, "second")
    assert file.read_text() == "second"


def test_digests_see_both_ends_the_size_and_the_name(tmp_path: Path) -> None:
    megabyte = 1 << 20
    base = bytearray(3 * megabyte)
    found = set()
    for place in (None, 24, len(base) - 1):  # 24: where SQLite counts its changes
        content = base.copy()
        if place is not None:
            content[place] = 1
        (tmp_path / "a").write_bytes(content)
        found.add(files_digest([tmp_path / "a"]))
    (tmp_path / "a").write_bytes(base + b"\0")
    (tmp_path / "b").write_bytes(base)
    found |= {files_digest([tmp_path / "a"]), files_digest([tmp_path / "b"])}
    assert len(found) == 5
    (tmp_path / "a").write_bytes(b"small")
    assert files_digest([tmp_path / "a"]) == files_digest([tmp_path / "a"])
