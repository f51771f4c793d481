"""The vLLM benchmark's sides do the same work; without vLLM it is left out. Nothing is timed."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.engines.vllm.client import Client
from axpo.engines.vllm.pool import Server
from benchmarks import __main__ as command
from benchmarks.models import training_checkpoint
from benchmarks.vllm_rollouts import (
    GENERATE,
    IN_PROCESS,
    MISSING,
    TINY,
    WIDE,
    Case,
    compare,
    group_seconds,
    requests,
    run,
)
from tests.support.fake_vllm import FakeVllm


def test_lengths_are_spread_over_a_prompt_s_rollouts() -> None:
    assert Case("m", 1, (4, 16), rollouts=4).lengths() == [4, 8, 12, 16]
    assert Case("m", 1, (5, 9), rollouts=1).lengths() == [5]


def test_every_side_samples_what_was_asked_for() -> None:
    checkpoint, case = training_checkpoint(), replace(TINY, model=WIDE)
    server = FakeVllm(checkpoint)
    seconds = itertools.count()  # one more at every reading: the server works 1 s a wave
    try:
        rows = compare(
            case, checkpoint, Server(Client(server.url, 60.0, 10.0)), lambda: next(seconds)
        )
        asked = len(server.bodies)
    finally:
        server.stop()
    assert [row["against"] for row in rows] == [IN_PROCESS, GENERATE]
    for row in rows:
        for side in (row["ours"], row["theirs"]):
            assert side["samples"] == 4
            assert side["tokens"] == 2 * (2 + 4)
        assert row["case"]["tokens"] == "2-4 tokens"
        assert json.dumps(row)
    assert asked == 2 * 4  # a warm-up and one round
    assert rows[0]["ours"]["server_s"] == 1 < rows[0]["ours"]["cpu_s"]


def test_rounds_ask_for_other_prompts() -> None:
    checkpoint, case = training_checkpoint(), replace(TINY, model=WIDE)
    first, second = (requests(case, checkpoint, number) for number in (0, 1))
    digests = [{p.digest for r in wave for p in r.pictures} for wave in (first, second)]
    assert len(digests[0]) == len(digests[1]) == 2 and not digests[0] & digests[1]
    assert not {r.group for r in first} & {r.group for r in second}
    assert set(checkpoint.processor.stop) <= set(first[0].sampling.banned)


def test_group_seconds_counts_the_group_alone() -> None:
    burn = "i = 0\nwhile i < 10**7: i += 1\nprint(flush=True)\ninput()"
    command = ["python", "-c", burn]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert group_seconds(process.pid) > 0
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert group_seconds(process.pid) == 0


def test_left_out_without_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the results of an earlier run stay."""
    (row,) = run(quick=True, vllm=None)
    assert row["skipped"] == MISSING
    monkeypatch.delenv("AXPO_VLLM_PYTHON", raising=False)
    out = tmp_path / "performance.json"
    out.write_text("{}")
    command.main(["vllm_rollouts", "--out", str(out), "--page", str(tmp_path / "page.md")])
    assert json.loads(out.read_text()) == {}
    assert "AXPO_VLLM_PYTHON" in capsys.readouterr().out
