"""`axpo eval` of a chat endpoint on the lab: figures, trees, a spent budget, refusals."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from axpo import checks
from axpo.config import Config, parse_config
from axpo.errors import BudgetSpent, ConfigError, ShelfError, UnscoredWarning, UserError
from axpo.models.tiny import write_tiny
from axpo.pictures import picture_digest, read_picture
from axpo.report.tables import print_evaluation
from axpo.store import load_groups
from axpo.tree import CallStatus, Group, Origin
from tests.support.fake_chat import Answer, FakeChat, said, serving
from tests.support.rollouts import ZOOM
from tests.support.runs import Lines, evaluate, train_rl

QUESTIONS, SAMPLES = 6, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, processor and shapes of a member of the family, without weights."""
    folder = tmp_path_factory.mktemp("model")
    write_tiny(folder)
    (folder / "model.safetensors").unlink()
    return folder


class Solver(FakeChat):
    """Zooms once, then says what it knows of the picture: the truth where the seed is even."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        examples = [config.task.example("test", i) for i in range(QUESTIONS)]
        self.truths = {picture_digest(e.images[0]): e.answer for e in examples if e.images}
        self.crops = 0

    def reply_to(self, body: dict[str, Any]) -> Answer:
        shown = [
            read_picture(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
            for message in body["messages"]
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        truth = self.truths[picture_digest(shown[0])]
        if len(body["messages"]) == 1 or body["messages"][-1]["role"] == "user":
            box = {"bbox_2d": [0, 0, 500, 500], "label": "x", "img_idx": 0}
            made = {"name": ZOOM, "arguments": json.dumps(box)}
            call = {"id": "any", "type": "function", "function": made}
            return said(None, "tool_calls", reasoning="I look.", tool_calls=[call])
        self.crops += len(shown) == 2
        return said(truth if body["seed"] % 2 == 0 else "none")


def recipe(server: FakeChat | None, **engine: Any) -> Config:
    values = {"name": "chat", "urls": [server.url if server else "http://x/v1"], "model": "solver"}
    return parse_config(
        {
            "task": {"name": "lab", "families": ["find"]},
            "engine": values | {"retries": 0, "slots": 4} | engine,
            "rollout": {
                "max_turns": 3,
                "max_turn_tokens": 500,
                "max_tokens": 4000,
                "tools": [ZOOM],
            },
            "eval": {"questions": QUESTIONS, "samples": SAMPLES, "k": 2},
        }
    )


@pytest.fixture
def server() -> Iterator[Solver]:
    with serving(Solver(recipe(None))) as solver:
        yield solver


def sampled(folder: Path) -> list[Group]:
    files = sorted((folder / "evaluation").glob("*.parquet"))
    return [group for file in files for group in load_groups(file)]


def test_the_lab_with_its_tool(
    tmp_path: Path, model: Path, server: Solver, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    config = recipe(server, prompt_price=1.0, reply_price=10.0)
    result = evaluate(config, model, tmp_path, lines)
    groups = sampled(tmp_path)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert len(rollouts) == QUESTIONS * SAMPLES and result["unscored"] == 0
    right = sum(rollout.reward == 1.0 for rollout in rollouts)
    assert 0 < right < len(rollouts)
    assert result["metrics"]["pass@1"]["value"] == pytest.approx(right / len(rollouts))
    assert result["metrics"]["tool_rate"]["value"] == 1.0
    assert all(call.status is CallStatus.OK for rollout in rollouts for call in rollout.calls)
    assert server.crops == len(rollouts)
    assert all(
        not segment.logprobs for rollout in rollouts for segment in rollout.segments
        if segment.origin is Origin.POLICY
    )  # fmt: skip
    asked = len(server.asked)
    assert (result["model"], result["chat_requests"]) == ("solver", asked)
    cost = asked * (100 * 1.0 + 10 * 10.0) / 1e6
    assert result["chat_cost"] == pytest.approx(cost)
    assert lines.steps[-1][2]["chat_cost"] == pytest.approx(cost)
    numbers = [v for values in result["metrics"].values() for v in values.values()]
    assert not any(isinstance(v, float) and math.isnan(v) for v in numbers)
    print_evaluation(result)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Endpoint: {asked} requests, 0 replies recorded before" in printed
    # All is there, so nothing is asked; another model is another evaluation.
    again = evaluate(recipe(None, urls=["http://127.0.0.1:9/v1"]), model, tmp_path, Lines())
    assert again["metrics"] == result["metrics"]
    with pytest.raises(ShelfError, match=r"engine\.model: expected 'other', got 'solver'"):
        evaluate(recipe(server, model="other"), model, tmp_path, Lines())


def test_a_spent_budget_ends_it_and_the_next_start_pays_for_the_rest(
    tmp_path: Path, model: Path, server: Solver
) -> None:
    whole = evaluate(recipe(server), model, tmp_path / "whole", Lines())
    asked = len(server.asked)
    with pytest.raises(BudgetSpent, match=r"engine\.budget: .*run the same command again"):
        evaluate(recipe(server, budget=asked * 110 // 2), model, tmp_path / "two", Lines())
    assert asked * 1.5 <= len(server.asked) <= asked * 1.5 + 4  # what was under way was completed
    resumed = evaluate(recipe(server, budget=asked * 110 + 1), model, tmp_path / "two", Lines())
    assert len(server.asked) == 2 * asked
    seen = [json.dumps(body) for body in server.asked[asked:]]
    assert len(set(seen)) == len(seen)
    assert resumed["metrics"] == whole["metrics"]
    first, second = (
        {r.id: [s.tokens for s in r.segments] for g in sampled(tmp_path / name) for r in g.rollouts}
        for name in ("whole", "two")
    )
    assert first == second


def test_an_endpoint_that_fails_loses_and_doubles_nothing(
    tmp_path: Path, model: Path, server: Solver
) -> None:
    server.fail_every = 5
    with pytest.warns(UnscoredWarning, match="status 500 overloaded"):
        first = evaluate(recipe(server), model, tmp_path / "first", Lines())
    assert first["unscored"] == first["faults"]["fault_engine"] == first["chat_failures"] > 0
    retried = evaluate(recipe(server, retries=3), model, tmp_path / "second", Lines())
    assert retried["unscored"] == 0
    assert len(sampled(tmp_path / "second")) == QUESTIONS


def test_what_an_endpoint_cannot_do_is_refused_at_the_start(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(None)
    local = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(model)})}
    )
    with pytest.raises(ConfigError, match=r"engine\.name: 'chat' serves a model of its own"):
        train_rl(config, model, tmp_path, Lines())
    with pytest.raises(ConfigError, match=r"engine\.name: axpo diagnose goes on from inside turns"):
        checks.check_names(local, "diagnose")
    checks.check_names(local, "eval")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keyed = config.engine.model_copy(update={"key": "NO_SUCH_KEY"})
    with pytest.raises(UserError, match=r"engine\.key: the environment variable NO_SUCH_KEY"):
        checks.check_names(local.model_copy(update={"engine": keyed}), "eval")
