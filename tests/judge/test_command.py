"""`axpo judge check`, and docs/judge.md as it is printed, against a server that looks for words."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axpo.cli.commands import app
from axpo.config import load_config
from axpo.errors import ConfigError, UserError
from axpo.judge.check import LABELLED, read_labelled
from tests.support.fake_judge import FakeJudge, judging, text_of
from tests.support.judge_server import stand_in

PAGE = (Path(__file__).parents[2] / "docs" / "judge.md").read_text()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    monkeypatch.chdir(tmp_path)
    with judging() as judge:
        yield judge


def settings(judge: FakeJudge, *more: str) -> list[str]:
    found = [f"judge.url={judge.url}", "judge.model=contains", "judge.record=judge.sqlite"]
    return [*found, *more]


def check(*words: str) -> str:
    result = CliRunner().invoke(app, ["judge", "check", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def blocks(kind: str) -> list[str]:
    """The page's blocks of a kind."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.S | re.M)
    return [text for named, text in found if named == kind]


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


class TestCommand:
    def test_the_page_s_output(self, server: FakeJudge) -> None:
        """What the page shows is printed; it leaves out most rows that differ."""
        found = lines(check(LABELLED, *settings(server)))
        shown = next(block for block in blocks("") if "Cohen's kappa" in block)
        (start, end) = (lines(part) for part in shown.split("\n...\n"))
        assert found[: len(start)] == start
        assert "\n".join(end) in "\n".join(found)

    def test_a_second_check_costs_nothing(self, server: FakeJudge) -> None:
        first = check(LABELLED, *settings(server))
        asked = len(server.asked)
        second = check(LABELLED, *settings(server), "--out", "out/check.json")
        assert len(server.asked) == asked > 100
        cost = "0 requests, 0 tokens sent and 0 received; "
        assert cost in second and cost not in first
        found = json.loads(Path("out/check.json").read_text())
        assert len(found["rows"]) == len(read_labelled(LABELLED))
        assert found["kinds"]["all"]["unscored"] == 0

    def test_failures_are_no_disagreement(self, server: FakeJudge) -> None:
        server.fail_every = 20
        found = json.loads(self._json(server, "judge.retries=0"))
        whole = found["kinds"]["all"]
        assert whole["unscored"] == server.failed > 3
        lost = [row for row in found["rows"] if row["said"] is None]
        assert len(lost) == server.failed and all("status 500" in row["words"] for row in lost)

    def _json(self, server: FakeJudge, *more: str) -> str:
        check(LABELLED, *settings(server, *more), "--out", "check.json")
        return Path("check.json").read_text()

    def test_no_judge(self, server: FakeJudge) -> None:
        with pytest.raises(ConfigError, match=r"judge: there is none; .*judge\.url, judge\.model"):
            check(LABELLED)

    def test_a_judge_that_is_not_there(self, server: FakeJudge) -> None:
        away = settings(server, "judge.url=http://127.0.0.1:9/v1", "judge.retries=0")
        with pytest.raises(UserError, match=r"no verdict on any of 121 answers; .*no connection"):
            check(LABELLED, *away)

    def test_a_server_of_its_own(self, server: FakeJudge) -> None:
        """It is started, asked, and gone afterwards."""
        python = stand_in(Path.cwd(), says="Score: 0")
        vllm = f"judge={{vllm={{python={python!r}}}, model='org/judge', record='judge.sqlite'}}"
        assert "121 answers, judged by org/judge" in check(LABELLED, vllm)
        assert not server.asked
        assert "listening" in Path("runs/vllm/judge.log").read_text()


class TestPage:
    def test_its_recipes_load(self, server: FakeJudge) -> None:
        for number, recipe in enumerate(blocks("toml")):
            Path(f"{number}.toml").write_text(recipe)
            assert load_config(f"{number}.toml").judge is not None

    def test_its_query(self, server: FakeJudge) -> None:
        """It reads what was asked, and what the judge replied."""
        Path("mine.jsonl").write_text(blocks("json")[0])
        check("mine.jsonl", *settings(server))
        _, file, statement = shlex.split(next(b for b in blocks("") if "sqlite3" in b))
        with sqlite3.connect(file) as database:
            ((asked, replied),) = database.execute(statement).fetchall()
        assert asked == text_of(server.asked[0]) and "How long is the bridge?" in asked
        assert replied == "Compared.\nScore: 0"

    def test_its_row(self, server: FakeJudge) -> None:
        Path("mine.jsonl").write_text(blocks("json")[0])
        assert "mine.jsonl: 1 answers" in check("mine.jsonl", *settings(server))
