"""A judge that fails, is late or stands still: nothing is lost, doubled, or said of the key."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from axpo.chat import client as client_module
from axpo.errors import GradingError
from axpo.judge import Judge, make_judge
from tests.support.fake_judge import (
    SECRET,
    Answer,
    FakeJudge,
    ask,
    graded,
    judging,
    question,
    said,
    settings_for,
)

NOT_JSON = Answer(body=b"<html>Score: 1</html>")
FAILURES = [
    (Answer(500, b"KEY oops"), "status 500 [key] oops", True, False),
    (Answer(503), "status 503", True, False),
    (Answer(429, b"slow down"), "status 429 slow down", True, False),
    (Answer(401, b"bad key KEY"), "status 401 bad key [key]", False, False),
    (Answer(404, b"no model"), "status 404 no model", False, False),
    (Answer(400, b"KEY"), "status 400 [key]", False, False),
    (Answer(302, headers={"location": "http://127.0.0.1:9"}), "status 302", False, False),
    (NOT_JSON, "no chat completion", True, True),
    (Answer(body=b""), "no chat completion", True, True),
    (Answer(body=b"[]"), "no chat completion", True, True),
    (Answer(body=b'{"choices": []}'), "no chat completion", True, True),
    (Answer(body=b'{"error": {"message": "KEY"}}'), "no chat completion", True, True),
    (Answer(body=None), "lost the connection", True, True),
    (Answer(body=None, delay=2.0), "no answer in 1 s", True, True),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WAIT", 0.01)
    monkeypatch.setattr(client_module, "WAIT_MAX", 0.02)
    monkeypatch.setenv("JUDGE_KEY", SECRET)


def spent(folder: Path) -> int:
    import sqlite3

    connection = sqlite3.connect(folder / "judge.db")
    (calls,) = connection.execute("SELECT calls FROM spent").fetchone()
    connection.close()
    return calls


@pytest.mark.parametrize(("answer", "words", "retried", "billed"), FAILURES)
def test_a_failure_is_ours_is_tried_again_and_names_no_key(
    tmp_path: Path, answer: Answer, words: str, retried: bool, billed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    timeout = 1.0 if answer.delay else 30.0
    changes: dict[str, Any] = {"key": "JUDGE_KEY", "timeout": timeout, "deadline": 30.0}
    with judging() as server:
        server.faults += [answer] * 3
        with pytest.raises(GradingError) as error:
            graded(server, tmp_path, "red", **changes)
        assert len(server.asked) == (3 if retried else 1)
        assert spent(tmp_path) == int(billed)
        server.faults.clear()
        assert graded(server, tmp_path, "red", key="JUDGE_KEY").reward == 0.0  # the run goes on
    assert words in str(error.value) and str(error.value).startswith("judge fake-judge: http://")
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    told = "".join(traceback.format_exception(error.value)) + caplog.text
    assert SECRET not in told
    assert SECRET.encode() not in (tmp_path / "judge.db").read_bytes()


def test_one_good_reply_after_failures_is_enough(tmp_path: Path) -> None:
    with judging() as server:
        server.faults += [Answer(500), NOT_JSON]
        assert graded(server, tmp_path, "A white one").reward == 1.0
        assert (len(server.asked), spent(tmp_path)) == (3, 1)
        server.faults += [Answer(500), said(None), said("")]
        assert graded(server, tmp_path, "white-ish").reward == 1.0  # empty replies are asked again


def test_a_server_says_how_long_to_wait(tmp_path: Path) -> None:
    with judging() as server:
        server.faults.append(Answer(429, headers={"retry-after": "1"}))
        began = time.perf_counter()
        graded(server, tmp_path, "red")
        assert time.perf_counter() - began >= 1.0
        server.faults.append(Answer(429, headers={"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}))
        graded(server, tmp_path, "blue")


def test_the_deadline_holds_for_all_tries(tmp_path: Path) -> None:
    with judging() as server:
        server.faults += [Answer(429, headers={"retry-after": "3600"})]
        with pytest.raises(GradingError, match=r"no answer in 0\.5 s"):
            graded(server, tmp_path, "red", timeout=0.5, deadline=0.5)
        assert spent(tmp_path) == 0  # a refused request is not billed
        server.delay = 2.0
        with pytest.raises(GradingError, match=r"no answer in 0\.5 s"):
            graded(server, tmp_path, "red", timeout=0.5, deadline=0.5)
        assert spent(tmp_path) == 1


def test_no_server_is_no_verdict(tmp_path: Path) -> None:
    server = FakeJudge()
    server.url = "http://me:secret@127.0.0.1:9/v1"
    with pytest.raises(GradingError, match=r"http://\*\*\*@127\.0\.0\.1:9/v1: no connection"):
        graded(server, tmp_path, "red")


def test_many_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    """One request of twenty fails, some replies are empty or no JSON, and many are the same."""
    answers = {f"q{i}": f"{'white' if i % 3 else 'red'} one" for i in range(120)}

    async def work(judge: Judge) -> tuple[list[float], dict[str, float]]:
        jobs = [judge.grade(question(id), said) for id, said in answers.items() for _ in range(3)]
        verdicts = await asyncio.gather(*jobs)
        return [verdict.reward for verdict in verdicts], judge.figures

    with judging() as server:
        server.fail_every, server.delay = 20, 0.01
        server.faults += [NOT_JSON, said(""), Answer(429), Answer(body=None)]
        rewards, first = ask(server, tmp_path, work, concurrency=7, retries=4)
        assert server.most <= 7
        empty = 1  # is a reply, and recorded
        failed = server.failed - empty
        assert len(server.asked) == 120 + empty + failed
        assert rewards == [float(i % 3 > 0) for i in range(120) for _ in range(3)]
        assert first["requests"] == len(server.asked) and first["failures"] == 0
        assert (first["unreadable"], spent(tmp_path)) == (pytest.approx(1, abs=2), 120 + empty)
        again, second = ask(server, tmp_path, work, concurrency=7, retries=4)
        assert again == rewards and second["requests"] == 0


def test_equal_questions_at_once_make_one_call(tmp_path: Path) -> None:
    async def work(judge: Judge) -> dict[str, float]:
        await asyncio.gather(*(judge.grade(question(), "red") for _ in range(8)))
        return judge.figures

    with judging() as server:
        server.delay = 0.2
        found = ask(server, tmp_path, work)
    assert (len(server.asked), found["shared"] + found["recorded"]) == (1, 7.0)


def test_one_judge_serves_one_event_loop_after_another(tmp_path: Path) -> None:
    with judging() as server:
        judge = make_judge(settings_for(server, tmp_path, concurrency=1))
        for answer in ("red", "blue"):
            asyncio.run(judge.grade(question(), answer))
        asyncio.run(judge.close())
    assert len(server.asked) == 2


KILLED = """
import asyncio, sys
from pathlib import Path
from axpo.config import JudgeSettings
from axpo.judge import make_judge
from tests.support.fake_judge import question

async def main(url, record, count):
    judge = make_judge(JudgeSettings(url=url, model="fake-judge", record=record, concurrency=4))
    async def one(i):
        verdict = await judge.grade(question(f"q{i}"), "white one" if i % 2 else "red one")
        print(i, verdict.reward, flush=True)
    await asyncio.gather(*(one(i) for i in range(count)))
    await judge.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_killed_and_resumed_no_verdict_is_paid_twice(tmp_path: Path) -> None:
    with judging() as server:
        server.delay = 0.05
        command = [sys.executable, "-c", KILLED, server.url, str(tmp_path / "judge.db"), "40"]
        done: list[str] = []
        for _ in range(2):
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            done += [child.stdout.readline() for _ in range(len(done) + 8)]
            child.kill()
            child.communicate()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rewards = dict(line.split() for line in said.splitlines())
        assert rewards == {str(i): str(float(i % 2)) for i in range(40)}
        texts = [json.dumps(body, sort_keys=True) for body in server.asked]
        assert len(set(texts)) == 40
        assert len(texts) <= 40 + 2 * 4  # what was under way at a kill was never a verdict
        before = len(texts)
        subprocess.run(command, capture_output=True, check=True)
        assert len(server.asked) == before
