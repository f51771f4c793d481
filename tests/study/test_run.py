"""The study's runner: what runs, what is not run again, kills, failures and changed files.

The commands are a stand-in for `axpo` that trains 5 steps of a fraction of a second and, like it,
goes on from what its folder holds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from axpo.cli.commands import app
from axpo.errors import StageError, StudyError, UserError
from axpo.folder import VERSION, RunFolder
from axpo.stages import Stage, _read_progress, run_stages, stage_line
from axpo.study import run
from axpo.study.run import run_study

STEPS = 5
STUDY = """
recipe = "r.toml"
baseline = "grpo"
seeds = [1, 2]
[variants.grpo]
overrides = ["algorithm.name=grpo"]
[variants.axpo]
overrides = ["rl.questions=6"]
"""
AXPO = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
_, _, command, recipe, *overrides, option, out = sys.argv[1:]
out = Path(out)
out.mkdir(parents=True, exist_ok=True)
(out / "version").write_text("{VERSION}")
with (out / "starts.log").open("a") as log:
    log.write(command + "\\n")
if os.environ.get("BREAK") and "algorithm.name=grpo" in overrides and "run.seed=1" in overrides:
    sys.exit("the disk is full")
if command == "train":
    path = out / "metrics.jsonl"
    first = len(path.read_text().splitlines()) if path.is_file() else 0
    for step in range(first, {STEPS}):
        time.sleep(float(os.environ.get("PACE", "0.01")))
        with path.open("a") as file:
            file.write(json.dumps({{"kind": "rl", "step": step, "pid": os.getpid()}}) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds `study.toml`; `out` is the study's. No tables: the stand-in evaluates nothing."""
    (tmp_path / "r.toml").write_text(f"[rl]\nsteps = {STEPS}\nquestions = 4\n")
    (tmp_path / "study.toml").write_text(STUDY)
    fake = tmp_path / "axpo.py"
    fake.write_text(AXPO)
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(run, "_tables", lambda study, out, say: out / "study.md")
    return tmp_path


def start(folder: Path, jobs: int = 4) -> Path:
    return run_study(folder / "study.toml", folder / "out", jobs)


def starts(folder: Path) -> dict[str, Counter[str]]:
    """model/seed -> how often each command was started in it."""
    found = sorted((folder / "out").glob("*/seed-*/starts.log"))
    return {"/".join(f.parts[-3:-1]): Counter(f.read_text().split()) for f in found}


def once(*commands: str) -> Counter[str]:
    return Counter(commands)


WHOLE = {
    **{f"start/seed-{s}": once("sft", "eval") for s in (1, 2)},
    **{f"{v}/seed-{s}": once("train", "eval") for v in ("grpo", "axpo") for s in (1, 2)},
}


def test_every_cell_runs_once(folder: Path) -> None:
    assert start(folder) == folder / "out" / "study.md"
    assert starts(folder) == WHOLE
    start(folder)
    assert starts(folder) == WHOLE


def test_a_killed_study_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with a train half-way: nothing outlives it, and no step is made twice."""
    monkeypatch.setenv("PACE", "0.4")
    code = (
        "import sys; from pathlib import Path; from axpo.study.run import run_study;"
        f"sys.executable = {sys.executable!r};"
        f"run_study(Path({str(folder / 'study.toml')!r}), Path({str(folder / 'out')!r}), 2)"
    )
    python = AXPO.splitlines()[0].removeprefix("#!")
    runner = subprocess.Popen([python, "-c", code], stderr=subprocess.DEVNULL)
    metrics = folder / "out" / "grpo" / "seed-1" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) >= 2)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    child = json.loads(metrics.read_text().splitlines()[0])["pid"]
    wait_for(lambda: not alive(child))
    made = len(metrics.read_text().splitlines())
    assert 2 <= made < STEPS
    before = {k: v for k, v in starts(folder).items() if k.startswith("start")}
    monkeypatch.setenv("PACE", "0.01")
    start(folder)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(STEPS))
    after = starts(folder)
    assert after["grpo/seed-1"] == Counter({"train": 2, "eval": 1})
    assert before["start/seed-1"]["sft"] == after["start/seed-1"]["sft"] == 1
    assert set(after) == set(WHOLE)


def test_a_failed_cell_stops_only_what_needs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK", "1")
    with pytest.raises(StageError) as error:
        start(folder)
    text = str(error.value)
    assert "2 of 12 stages failed" in text and "study.md" in text
    assert "train grpo 1 failed (exit 1)" in text and "the disk is full" in text
    assert "eval grpo 1 not run: it needs train grpo 1" in text
    whole = {**WHOLE, "grpo/seed-1": once("train")}
    assert starts(folder) == whole
    monkeypatch.delenv("BREAK")
    start(folder)
    assert starts(folder) == {**whole, "grpo/seed-1": once("train", "train", "eval")}


def test_changed_settings_of_what_is_there_are_refused(folder: Path) -> None:
    start(folder)
    study = folder / "study.toml"
    study.write_text(STUDY.replace("rl.questions=6", "rl.questions=8"))
    with pytest.raises(StudyError) as error:
        start(folder)
    text = str(error.value)
    assert "train axpo 1" in text and "rl.questions: 6 -> 8" in text and "grpo" not in text
    (folder / "r.toml").write_text(f"[rl]\nsteps = {STEPS}\nquestions = 2\n")
    study.write_text(STUDY)
    with pytest.raises(StudyError, match=r"train grpo 2: rl\.questions: 4 -> 2 \(remove .*seed-2"):
        start(folder)
    assert starts(folder) == WHOLE


def test_another_start_is_another_study(folder: Path) -> None:
    """What SFT is run with belongs to all that is trained and judged after it."""
    start(folder)
    study = folder / "study.toml"
    study.write_text('overrides = ["sft.steps=9"]\n' + STUDY)
    with pytest.raises(StudyError) as error:
        start(folder)
    for stage in ("sft start 1", "eval start 2", "train grpo 1", "eval axpo 2"):
        assert f"{stage}: sft.steps: 300 -> 9" in str(error.value)
    study.write_text('sft = "shared"\n' + STUDY)
    with pytest.raises(StudyError, match="train grpo 2: start: 'each_seed 2' -> 'shared 1'"):
        start(folder)
    study.write_text('sft = "none"\n' + STUDY)
    with pytest.raises(StudyError, match=r"eval start 1: .*start: 'each_seed 1' -> 'model.path'"):
        start(folder)
    assert starts(folder) == WHOLE


def test_without_sft_a_study_may_get_earlier_seeds(folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text('sft = "none"\n' + STUDY)
    start(folder)
    before = starts(folder)
    study.write_text('sft = "none"\n' + STUDY.replace("[1, 2]", "[1, 2, 0]"))
    start(folder)
    assert before.items() <= starts(folder).items()


def test_only_how_it_is_judged_has_changed(folder: Path) -> None:
    """Then nothing that was trained is to be removed, and what is half trained goes on."""
    start(folder)
    (folder / "study.toml").write_text('overrides = ["eval.samples=16"]\n' + STUDY)
    with pytest.raises(StudyError) as error:
        start(folder)
    text = str(error.value)
    assert "eval grpo 1: eval.samples: 8 -> 16" in text and "train" not in text
    assert "(remove " + str(folder / "out" / "grpo" / "seed-1" / "eval grpo 1.*.json") in text
    for file in (folder / "out").glob("*/seed-*/eval*.json"):
        file.unlink()
    start(folder)
    assert starts(folder)["grpo/seed-1"] == Counter({"train": 1, "eval": 2})


def test_servers_may_move(folder: Path) -> None:
    start(folder)
    (folder / "study.toml").write_text('overrides = ["engine.slots=64"]\n' + STUDY)
    start(folder)
    assert starts(folder) == WHOLE


def test_a_study_may_grow(folder: Path) -> None:
    start(folder)
    study = folder / "study.toml"
    study.write_text(STUDY.replace("[1, 2]", "[1, 2, 3]") + "[variants.more]\nseeds = [1]\n")
    start(folder)
    new = {
        "start/seed-3": once("sft", "eval"),
        **{f"{cell}": once("train", "eval") for cell in ("grpo/seed-3", "axpo/seed-3")},
        "more/seed-1": once("train", "eval"),
    }
    assert starts(folder) == {**WHOLE, **new}


def test_two_runners_do_not_share_a_folder(folder: Path) -> None:
    """Nor does the command exclude itself."""
    with RunFolder(folder / "out").alone(), pytest.raises(UserError, match="another axpo command"):
        start(folder)
    study = [str(folder / "study.toml"), "--out", str(folder / "out"), "--jobs", "4"]
    app(["study", *study], standalone_mode=False)
    assert starts(folder) == WHOLE


def test_no_more_than_so_many_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACE", "0.1")
    most = 0
    stages = [Stage(f"s{i}", command(folder, i), folder / str(i), "rl", STEPS, 1) for i in range(5)]

    def starting(stage: Stage) -> None:
        nonlocal most
        most = max(most, 1 + sum(s.running for s in stages))

    assert run_stages(stages, folder / "logs", "t", 2, starting=starting) == []
    assert most == 2 and all(stage.finished for stage in stages)


def test_finished_stages_tell_how_long_the_others_take(folder: Path) -> None:
    stages = [Stage(f"s{i}", command(folder, i), folder / str(i), "rl", 5, 1e6) for i in range(2)]
    run_stages(stages, folder / "logs", "t", 1)
    assert 0 < stages[1].guess == pytest.approx(stages[0].seconds)
    assert "✓ s0" in stage_line(stages[0])


def test_a_gpu_takes_one_stage_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless --jobs says more; "auto" takes a GPU where there is a driver for one."""
    monkeypatch.setattr(run, "find_library", lambda name: {"cuda": "libcuda.so.1"}[name])
    monkeypatch.setattr(run, "usable_cores", lambda: 7)
    assert [run.default_jobs(device) for device in ("cpu", "cuda:1", "auto")] == [7, 1, 1]
    monkeypatch.setattr(run, "find_library", lambda name: None)
    assert [run.default_jobs(device) for device in ("cpu", "cuda", "auto")] == [7, 1, 7]


def test_time_to_go_of_a_stage_that_goes_on() -> None:
    """At 60 of 200 steps from a checkpoint at 50 while 59 were logged: 140 steps at 2.5 s."""
    stage = Stage("s", [], Path(), "rl", 200, 500.0)
    stage.steps = 60
    assert stage.left() == pytest.approx(350)  # waits: the rest of what a whole one takes
    stage.process = subprocess.Popen(["true"])
    stage.process.wait()
    stage.first, stage.began = 50, time.monotonic() - 25
    assert stage.left() == pytest.approx(350, rel=1e-3)


def test_a_stage_that_falls_back_to_its_checkpoint_is_timed_from_there(folder: Path) -> None:
    stage = Stage("s", [], folder, "rl", 200, 500.0)
    stage.first, stage.steps, stage.began = 60, 60, 0.0
    (folder / "metrics.jsonl").write_text('{"kind": "rl", "step": 50}\n')
    _read_progress(stage)
    assert (stage.first, stage.steps) == (51, 51)
    assert time.monotonic() - stage.began < 5


def test_a_damaged_line_of_one_stage_does_not_stop_the_others(folder: Path) -> None:
    stages = [Stage(f"s{i}", command(folder, i), folder / str(i), "rl", STEPS, 1) for i in range(2)]
    (folder / "0").mkdir()
    (folder / "0" / "metrics.jsonl").write_text('not JSON\n{"kind": "rl", "step": 1}\n')
    assert run_stages(stages, folder / "logs", "t", 2, keep_going=True) == []
    assert all(stage.finished for stage in stages)


def test_a_stage_without_steps_has_a_line() -> None:
    stage = Stage("diagnose", [], Path(), "diagnose", 0, 30.0)
    assert "diagnose" in stage_line(stage) and stage.left() == 30.0
    stage.finished = True
    assert "✓ diagnose" in stage_line(stage)


def test_a_line_says_what_could_not_be_scored_while_there_is_any(folder: Path) -> None:
    stage = Stage("s", [], folder, "rl", 9, 1.0)
    stage.process = subprocess.Popen(["true"])
    stage.process.wait()
    line = '{"kind": "rl", "step": 0, "tool_rate": 0.25, "unscored_share": %s}\n'
    for share, said in (("0.0", False), ("0.125", True)):
        (folder / "metrics.jsonl").write_text(line % share)
        _read_progress(stage)
        assert "tool rate 25 %" in stage_line(stage)
        assert ("not scored 12 %" in stage_line(stage)) is said


def command(folder: Path, i: int) -> list[str]:
    return ["train", "r.toml", "--out", str(folder / str(i))]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.is_file() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
