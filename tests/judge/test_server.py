"""The vLLM server of a run's judge; the last test needs a real one (AXPO_VLLM_PYTHON)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

import axpo
from axpo.build import runs
from axpo.checks import check_names
from axpo.config import load_config
from axpo.config.judge import JudgeServer
from axpo.engines.embedded import Transformers
from axpo.engines.vllm import judge
from axpo.engines.vllm.judge import start_server
from axpo.engines.vllm.process import ServerProcess
from axpo.errors import ConfigError, MissingError, UserError
from axpo.tasks.lab import BASE
from tests.support.judge_server import stand_in
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_server import HEAD, PYTHON, real


def gone(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False)
    except httpx.TransportError:
        return True
    return False


def test_it_starts_with_its_arguments_and_ends(tmp_path: Path) -> None:
    settings = JudgeServer(
        python=stand_in(tmp_path), share=0.3, cards="1", max_length=512, arguments=("--seed=1",)
    )
    server = start_server(settings, "org/judge", tmp_path / "vllm" / "judge.log")
    asked = {"model": "org/judge", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked, trust_env=False).json()
    words, cards = answer["choices"][0]["message"]["content"].split("|")
    server.stop()
    assert gone(server.url)
    assert words.split()[:-2] == [
        "--host", "127.0.0.1", "--model", "org/judge", "--served-model-name", "org/judge",
        "--max-model-len", "512", "--gpu-memory-utilization", "0.3", "--seed=1",
    ]  # fmt: skip
    assert cards == "1"
    assert "listening" in (tmp_path / "vllm" / "judge.log").read_text()


def test_one_that_dies_says_why(tmp_path: Path) -> None:
    settings = JudgeServer(python=stand_in(tmp_path, dies="ValueError: no such model"))
    with pytest.raises(UserError, match=r"did not start: .*judge\.log says: ValueError: no such"):
        start_server(settings, "org/judge", tmp_path / "judge.log")


def test_one_that_is_never_ready(tmp_path: Path) -> None:
    settings = JudgeServer(python=stand_in(tmp_path, healthy=False), start_seconds=1)
    with pytest.raises(UserError, match=r"not ready after judge\.vllm\.start_seconds = 1"):
        start_server(settings, "org/judge", tmp_path / "judge.log")


def test_a_python_without_vllm(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge\.vllm\.python: .* has no vLLM"):
        start_server(JudgeServer(python=sys.executable), "org/judge", tmp_path / "judge.log")


def test_the_share_is_a_setting_and_no_argument() -> None:
    for argument in ("--gpu-memory-utilization=0.5", "--gpu_memory_utilization"):
        with pytest.raises(ValidationError, match="is the setting `share` here"):
            JudgeServer(python="p", arguments=(argument, "0.5"))


SMALL = (
    "lab", "task={name='data', path='sample', grading='judge'}", f"model.path={BASE}",
    "rl.steps=1", "rl.questions=2", "rl.updates=1", "algorithm.rollouts=4", "tools.search={}",
    "rollout.tools=['image_zoom_in_tool']", "rollout.max_turn_tokens=96", "rollout.max_tokens=192",
    "judge.model=org/judge",
)  # fmt: skip


class TestRun:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> list[str]:
        python = stand_in(tmp_path, says="The same.\nScore: 1")
        own = (f"judge.vllm.python={python}", f"judge.record={tmp_path}/judge.sqlite")
        return [*SMALL, *own]

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[ServerProcess]:
        found: list[ServerProcess] = []
        start = judge.start_server

        def noted(*given: Any) -> ServerProcess:
            found.append(start(*given))
            return found[-1]

        monkeypatch.setattr(judge, "start_server", noted)
        return found

    def test_it_starts_and_ends_with_a_run(
        self, tmp_path: Path, settings: list[str], started: list[ServerProcess]
    ) -> None:
        run = axpo.train(load_config(*settings), out=tmp_path / "run")
        (server,) = started
        assert gone(server.url) and server.failure() is not None
        assert "listening" in (tmp_path / "run" / "vllm" / "judge.log").read_text()
        (line,) = run.metrics
        assert line["judge_requests"] > 0 and line["judge_failures"] == 0

    def test_it_ends_where_the_engine_does_not_start(
        self,
        tmp_path: Path,
        settings: list[str],
        started: list[ServerProcess],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def broken(*_: object) -> None:
            raise UserError("no engine today")

        monkeypatch.setattr(Transformers, "start", broken)
        with pytest.raises(UserError, match="no engine today"):
            axpo.train(load_config(*settings), out=tmp_path / "run")
        (server,) = started
        assert gone(server.url)

    def test_what_cannot_start_is_said_before_the_model_is_loaded(
        self, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away = load_config(*settings, "judge.vllm.python=/no/python")
        with pytest.raises(MissingError, match=r"judge\.vllm\.python: .*no program /no/python"):
            check_names(away, "train")
        check_names(away, "sft")

        def loaded(*_: object) -> None:
            raise AssertionError("the model was loaded")

        monkeypatch.setattr(runs, "load_policy", loaded)
        with pytest.raises(ConfigError, match=r"judge\.vllm\.python: .* has no vLLM"):
            runs.rl_run(load_config(*settings, f"judge.vllm.python={sys.executable}"), tmp_path)

    def test_an_address_and_a_server(self, settings: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"judge\.url, vllm: expected one of them"):
            load_config(*settings, "judge.url=http://127.0.0.1:1/v1")


@real
def test_a_real_one_answers(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    tiny_checkpoint(0, HEAD).save(tmp_path / "model")
    settings = JudgeServer(python=PYTHON, max_length=512, arguments=("--dtype=float32",))
    server = start_server(settings, model, tmp_path / "judge.log")
    messages = [{"role": "user", "content": "Is 3 the same as three?"}]
    asked = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    try:
        found = httpx.post(
            f"{server.url}/v1/chat/completions", json=asked, trust_env=False, timeout=60
        ).json()
    finally:
        server.stop()
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 8
    assert gone(server.url)
