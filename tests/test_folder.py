"""A run's folder belongs to one command at a time, and its files are whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from axpo.errors import UserError
from axpo.evaluation.results import evaluated_groups
from axpo.folder import VERSION, RunFolder, files_digest, read_json, whole_folder, write_whole
from axpo.report.runs import RunView
from axpo.tasks.lab import BASE

HOLD = """import sys, pathlib, axpo.folder as f
with f.RunFolder(pathlib.Path(sys.argv[1])).alone():
"""


def test_a_second_command_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    code = f"{HOLD}    print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"in\n"
        refused = pytest.raises(UserError, match=rf"process {first.pid}\) works in this folder")
        with refused, RunFolder(tmp_path).alone():
            raise AssertionError("two in one folder")
        first.kill()
        first.wait()
    with RunFolder(tmp_path).alone():  # the lock ended with its process
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_commands_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    """The command line itself, for a command that reads much before it writes."""
    out = tmp_path / "run"
    with RunFolder(out).alone():
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
        RunFolder(tmp_path / "run").alone(),
    ):
        pass


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"), RunFolder(tmp_path / "run").alone():
        raise UserError("no such model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError), RunFolder(tmp_path / "run").alone():
        raise UserError
    assert (tmp_path / "run").is_dir()
    with pytest.raises(UserError), RunFolder(tmp_path / "other").alone():
        (tmp_path / "other" / "config.json").write_text("{}")
        raise UserError
    assert (tmp_path / "other" / "config.json").is_file()


def test_a_folder_of_another_version_is_refused_with_both(tmp_path: Path) -> None:
    """One from before versions were written is told by what a run leaves; nothing is changed."""
    older, newer, sampled = (RunFolder(tmp_path / name) for name in ("older", "newer", "sampled"))
    for folder in (older, newer, sampled):
        folder.path.mkdir()
    older.settings.write_text("{}")
    (older.checkpoints / "step-000001").mkdir(parents=True)
    newer.version.write_text(f"{VERSION + 1}\n")
    sampled.metrics.write_text("{}\n")  # of an evaluation, which leaves no settings
    before = sorted(tmp_path.rglob("*"))
    for folder, version in ((older, 1), (newer, VERSION + 1), (sampled, 1)):
        said = rf"{folder.path} is a run's folder of version {version}, .* version {VERSION}: use"
        with pytest.raises(UserError, match=said), folder.alone():
            pass
        with pytest.raises(UserError, match=said):
            folder.check()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_old_folder_is_refused_by_the_commands_that_read_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a")
    run.path.mkdir()
    run.metrics.write_text("{}\n")
    run.evaluation.write_text("{}")
    said = f"a is a run's folder of version 1, and this axpo reads and writes version {VERSION}"
    with pytest.raises(UserError, match=said):
        RunView.load(run.path)
    with pytest.raises(UserError, match=said):
        evaluated_groups(run.path)


def test_what_is_no_run_may_become_one(tmp_path: Path) -> None:
    """A folder of one's own files, or of other runs."""
    (tmp_path / "notes.txt").write_text("")
    with RunFolder(tmp_path / "a").alone():
        RunFolder(tmp_path / "a").metrics.write_text("{}\n")
    with RunFolder(tmp_path).alone():
        assert read_json(RunFolder(tmp_path).version) == VERSION


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("")
    with pytest.raises(UserError, match=r"config\.json is damaged \(Expecting value.*put it back"):
        read_json(tmp_path / "config.json")


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "it"
    with whole_folder(folder) as temporary:
        (temporary / "a").write_text("first")
        assert not folder.exists()
    (tmp_path / "in" / ".writing-left").mkdir()  # by a kill
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["it"]
    assert (folder / "a").read_text() == "first"
    with whole_folder(folder) as temporary:
        (temporary / "b").write_text("second")
    assert [p.name for p in folder.iterdir()] == ["b"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["it"]


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
