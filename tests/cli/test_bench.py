"""`axpo bench` end to end: the lab's model on made rows of public benchmarks and on one's own."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import axpo
from axpo.build import runs
from axpo.errors import ConfigError, ShelfError
from axpo.evaluation.bench.paper import PASS_AT_1
from axpo.evaluation.results import compare_runs
from axpo.folder import RunFolder
from axpo.report import bench as shown
from axpo.report.command import write_report
from axpo.tasks.lab import BASE
from tests.support.benchmarks import written
from tests.support.data_sets import picture, write_jsonl
from tests.support.fake_judge import FakeJudge, judging, settings_for
from tests.support.made_rows import (
    hr_bench_rows,
    hr_mmsearch_rows,
    math_vr_rows,
    mathvision_rows,
    mmsearch_rows,
    vstar_rows,
    written_dynamath,
    written_visual_probe,
)
from tests.support.terminal import start

RECIPE = (
    "lab", "rollout.tools=['image_zoom_in_tool']", "rollout.max_turns=2",
    "rollout.max_turn_tokens=12", "rollout.max_tokens=40",
)  # fmt: skip
WORDS = '''"""A benchmark of ten questions that a judge grades; the source counts an "e"."""

from axpo import Example, Verdict
from axpo.tasks.benchmarks.base import Benchmark, Scorer, Source, text_of


class Words(Benchmark):
    sources = (Source("me/words", "test", 10),)
    columns = ("id", "question")
    scorer = Scorer("me/words", "score.py", "judge")

    def read(self, row, source):
        return Example(text_of(row, "id"), text_of(row, "question"), (), "white", grading="judge",
                       cluster=f"pair {int(row['id']) // 2}", meta={"family": "words"})

    def official(self, example, answer, verdict):
        return Verdict(float("e" in answer), "has an e", verdict.detail)
'''


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    written(folder / "vstar.parquet", vstar_rows())
    written(folder / "hr.parquet", hr_bench_rows())
    (folder / "dynamath").mkdir()
    written_dynamath(folder / "dynamath")
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose weights were loaded."""
    loaded: list[str] = []
    load = runs.load_trained

    def counted(config: axpo.Config, path: str) -> Any:
        loaded.append(path)
        return load(config, path)

    monkeypatch.setattr(runs, "load_trained", counted)
    return loaded


def three(rows: Path) -> str:
    return (
        f"vstar={rows}/vstar.parquet,hr-bench-4k={rows}/hr.parquet,"
        f"dynamath={rows}/dynamath/{{split}}.parquet"
    )


def samples(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def printed(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The table on a terminal of 100 columns."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    monkeypatch.setattr(shown, "output_console", lambda: console)
    shown.print_bench(found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_three_public_benchmarks_with_and_without_tools(
    tmp_path: Path, rows: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config, out = axpo.load_config(*RECIPE), tmp_path / "out"
    given: dict[str, Any] = {"samples": 2, "questions": 8, "no_tools": True}
    found = axpo.bench(config, three(rows), out, **given)
    assert loads == [str(BASE)]  # once, for six measurements
    assert ": sample 96/96 (100 %) | " in capsys.readouterr().err  # 3 x 2 x 8 x 2
    assert found == json.loads((out / "bench.json").read_text())
    assert list(found["benchmarks"]) == ["vstar", "hr-bench-4k", "dynamath"]
    hr, dynamath = found["benchmarks"]["hr-bench-4k"], found["benchmarks"]["dynamath"]
    assert (hr["rows"], hr["arms"]["tools"]["questions"], hr["arms"]["tools"]["clusters"]) == (
        800, 8, 2
    )  # fmt: skip
    assert "official" not in hr["arms"]["tools"]["metrics"] and dynamath["arms"]["tools"]["metrics"]
    assert dynamath["arms"]["tools"]["official_scored"] == 16
    assert found["means"] == {}  # three of nine
    assert hr["paper"]["8B AXPO"] == {"pass@1": 0.833, "tool_rate": 0.9}

    lines = samples(out)
    assert len(lines) == 3 * 2 * 8 * 2
    assert {(line["benchmark"], line["arm"]) for line in lines} == {
        (name, arm) for name in found["benchmarks"] for arm in ("tools", "no-tools")
    }
    assert not any(line["calls"] for line in lines if line["arm"] == "no-tools")
    noted = json.loads((out / "vstar" / "no-tools" / "config.json").read_text())
    assert (noted["rollout"]["max_turns"], noted["rollout"]["tools"]) == (1, [])
    assert (out / "bench.html").read_text().count("paper: 32B base") == 3

    table = printed(found, monkeypatch)
    assert max(map(len, table)) <= 100
    assert "hr-bench-4k: the first 8 of 800 questions in 2 clusters, 2 samples each" in table

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded for what is there")

    monkeypatch.setattr(runs, "load_trained", load)
    assert axpo.bench(config, three(rows), out, **given) == found
    one = axpo.bench(config, f"vstar={rows}/vstar.parquet", out, **given | {"questions": 4})
    assert one["benchmarks"]["vstar"]["arms"]["tools"]["questions"] == 4
    with pytest.raises(ConfigError, match=r"other settings \(rollout.max_turns: 2 -> 3\)"):
        axpo.bench(axpo.load_config(*RECIPE, "rollout.max_turns=3"), three(rows), out, **given)
    with pytest.raises(ShelfError, match=r"eval.samples: expected 1, got 2"):
        axpo.bench(config, three(rows), out, **given | {"samples": 1})

    both = [out / "vstar" / arm for arm in ("no-tools", "tools")]
    assert compare_runs(both[0], both[1])["questions"] == 8
    write_report(both, tmp_path / "report.html", lambda _: None)
    assert axpo.grade(both[1])["graded"] == sum(
        line["benchmark"] == "vstar" and line["arm"] == "tools" and line["stop"] == "answer"
        for line in lines
    )


def test_killed_at_a_random_sample_and_given_again_it_gives_the_same_table(
    tmp_path: Path, rows: Path
) -> None:
    config = axpo.load_config(*RECIPE)
    given: dict[str, Any] = {"samples": 2, "questions": 24, "no_tools": True}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    found = axpo.bench(config, three(rows), whole, **given)
    seed = time.time_ns()
    at = random.Random(seed).randrange(1, 3 * 2 * 24 // 8)
    process = start("bench", *RECIPE, "--on", three(rows), "--out", broken, "--samples", "2",
                    "--questions", "24", "--no-tools")  # fmt: skip
    while len(list(broken.glob("*/*/evaluation/*.parquet"))) < at and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (broken / "bench.json").exists(), seed
    assert axpo.bench(config, three(rows), broken, **given) == found, seed
    assert samples(broken) == samples(whole), seed


def lenient(text: str) -> str:
    """Right is what has a 1 in it; every solution gets the first point of a rubric."""
    if "fully_correct" in text:
        return '{"fully_correct": false, "awarded": ["p1"], "score": 3}'
    inner = text.partition("<program>\n")[2].partition("\n</program>")[0]
    return f"Looked.\nScore: {int('1' in inner)}"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One's own benchmark beside its rows."""
    (tmp_path / "words_of_mine.py").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "p.png").write_bytes(picture())
    lines = [{"id": i, "question": f"Which card is {i}?", "image": "p.png"} for i in range(10)]
    write_jsonl(tmp_path / "words.jsonl", *lines)
    yield "words_of_mine:Words=words.jsonl"


def test_ones_own_benchmark_a_judge_and_a_base(
    tmp_path: Path, words: str, rows: Path, loads: list[str]
) -> None:
    shutil.copytree(BASE, tmp_path / "same")
    on = f"{words},vstar={rows}/vstar.parquet"
    config = axpo.load_config(*RECIPE)
    with pytest.raises(
        ConfigError, match=r"^words_of_mine:Words: judge: rows are graded by 'judge"
    ):
        axpo.bench(config, on, "out", base="same", samples=2, questions=6)
    assert not Path("out").exists() and not loads
    with judging(FakeJudge(lenient)) as server:
        config = axpo.load_config(*RECIPE, *judge_settings(server, tmp_path))
        found = axpo.bench(config, on, "out", base="same", samples=2, questions=6)
        asked = len(server.asked)
        assert axpo.bench(config, on, "out", base="same", samples=2, questions=6) == found
        assert len(server.asked) == asked > 0
    assert loads == [str(BASE), "same"]
    own = found["benchmarks"]["words_of_mine:Words"]
    assert list(own["arms"]) == ["tools", "base"]
    assert (own["rows"], own["arms"]["base"]["clusters"], own["paper"]) == (10, 3, {})
    # The same weights and draws: nothing is gained.
    gain = own["gains"]["base"]["difference"]["pass@1"]
    assert gain == {"value": 0.0, "low": 0.0, "high": 0.0}
    lines = [line for line in samples(Path("out")) if line["benchmark"] != "vstar"]
    answered = [line for line in lines if line["stop"] == "answer"]
    assert answered
    for line in answered:
        assert line["reward"] == float("Score: 1" in line["detail"])
        assert line["official"] == float("e" in line["answer"])
    assert {line["reward"] for line in answered} == {0.0, 1.0}
    assert all(line["official"] == line["reward"] == 0 for line in lines if line not in answered)
    right = sum(line["official"] for line in lines if line["arm"] == "tools")
    assert own["arms"]["tools"]["metrics"]["official"]["value"] == pytest.approx(right / 12)
    assert own["arms"]["tools"]["averages"]["official"]["all"] == pytest.approx(right / 12)
    assert RunFolder(Path("out/words_of_mine-Words/base")).evaluation.is_file()


def judge_settings(server: FakeJudge, folder: Path) -> tuple[str, ...]:
    found = settings_for(server, folder)
    return (f"judge.url={found.url}", f"judge.model={found.model}", f"judge.record={found.record}")


def test_the_paper_s_nine_benchmarks_with_the_search_that_some_of_them_add(
    tmp_path: Path, rows: Path, loads: list[str]
) -> None:
    written(tmp_path / "hr_mmsearch.parquet", hr_mmsearch_rows())
    written(tmp_path / "mmsearch.parquet", mmsearch_rows())
    on = [
        *three(rows).split(","),
        f"hr-bench-8k={rows}/hr.parquet",
        f"visual-probe={written_visual_probe(tmp_path / 'probe')}",
        f"hr-mmsearch={tmp_path}/hr_mmsearch.parquet",
        f"mmsearch={tmp_path}/mmsearch.parquet",
        f"mathvision={written(tmp_path / 'mathvision.parquet', mathvision_rows())}",
        f"math-vr={written(tmp_path / 'math_vr.parquet', math_vr_rows())}",
    ]
    tools = "rollout.tools=['image_zoom_in_tool', 'web_search']"
    given: dict[str, Any] = {"samples": 4, "questions": 3}
    with judging(FakeJudge(lenient)) as server:
        recipe = (*RECIPE, tools, "tools.search.corpus=lab", *judge_settings(server, tmp_path))
        with pytest.raises(ConfigError, match=r"search\.gallery: image_search needs one") as error:
            axpo.bench(axpo.load_config(*recipe), on, tmp_path / "out", **given)
        assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
            "hr-mmsearch", "mmsearch"
        ]  # fmt: skip
        config = axpo.load_config(*recipe, "tools.search.gallery=lab")
        found = axpo.bench(config, on, tmp_path / "out", **given)
    assert len(loads) == 1 and len(samples(tmp_path / "out")) == len(on) * 3 * 4
    for name, one in found["benchmarks"].items():
        noted = json.loads((tmp_path / "out" / name / "tools" / "config.json").read_text())
        added = ["image_search"] if name in ("hr-mmsearch", "mmsearch") else []
        assert noted["rollout"]["tools"] == ["image_zoom_in_tool", "web_search", *added]
        blocked = noted["tools"]["search"]["blocked"]
        assert f"github.com/{one['scorer']['repository']}" in blocked
        assert len(one["paper"]) == 3
        assert one["arms"]["tools"]["unscored"] == 0
    assert {*found["benchmarks"]} == {*PASS_AT_1}
    firsts = [one["arms"]["tools"]["metrics"]["pass@1"] for one in found["benchmarks"].values()]
    assert found["means"]["tools"]["pass@1"] == pytest.approx(sum(e["value"] for e in firsts) / 9)


REFUSED = {
    "vstarr": r"--on: 'vstarr': did you mean 'vstar'\? there are .*hr-bench-8k",
    "lab": "--on: 'lab': there are ",
    "axpo.tasks.lab.task:LabTask": "is no benchmark: derive one from",
    "vstar,vstar": "--on: vstar is there twice",
    "vstar=": "name the file or folder of its rows",
    " ,": "--on: name a benchmark",
}


@pytest.mark.parametrize("on", REFUSED)
def test_a_name_that_is_no_benchmark_is_refused(tmp_path: Path, on: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[on]):
        axpo.bench(axpo.load_config(*RECIPE), on, tmp_path / "out")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, rows: Path, loads: list[str]) -> None:
    written(tmp_path / "few.parquet", hr_bench_rows()[:100])
    on = [f"vstar={rows}/none.parquet", f"hr-bench-4k={tmp_path}/few.parquet",
          f"hr-bench-8k={rows}/hr.parquet"]  # fmt: skip
    with pytest.raises(ConfigError) as error:
        axpo.bench(axpo.load_config(*RECIPE), on, tmp_path / "out", no_tools=True)
    first, second = str(error.value).splitlines()
    assert first.startswith("vstar: task.path: there is no ") and "lmms-lab" in first
    assert second.startswith("hr-bench-4k: ") and "100 rows, expected the 800" in second
    assert not loads and not (tmp_path / "out").exists()


def test_the_rows_alone_are_checked(tmp_path: Path, rows: Path) -> None:
    written(tmp_path / "few.parquet", hr_bench_rows()[:100])
    for path, code, said in (
        (rows / "hr.parquet", 0, "hrbench_4k, 800 rows (expected 800)"),
        (tmp_path / "few.parquet", 1, "DIFFERS: "),
    ):
        process = start("bench", "--check", "--on", f"hr-bench-4k={path}")
        out, _ = process.communicate()
        assert process.returncode == code and said in out
    process = start("bench", "lab", "--check", "--on", "vstar")
    _, error = process.communicate()
    assert process.returncode and "RECIPE: no effect with --check" in error


def test_settings_without_effect_are_refused(tmp_path: Path, rows: Path) -> None:
    on, out = f"vstar={rows}/vstar.parquet", tmp_path / "out"
    with pytest.raises(ConfigError, match="--no-tools: no effect"):
        axpo.bench(axpo.load_config(*RECIPE, "rollout.tools=[]"), on, out, no_tools=True)
    with pytest.raises(ConfigError, match=r"--base: lab-base is model\.path itself"):
        axpo.bench(axpo.load_config(*RECIPE), on, out, base="lab-base")
    process = start("bench", "lab", "eval.samples=8", "--on", on, "--out", out)
    _, said = process.communicate()
    assert process.returncode and said.startswith("axpo: eval.samples: no effect on a bench")
