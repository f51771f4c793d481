"""A served model measured alone: no weights here, and an evaluation is of one model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from axpo.build import models
from axpo.config import Config, parse_config
from axpo.errors import CheckpointError, ShelfError, UserError
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.tasks.lab import BASE
from tests.support.data_sets import write_jsonl
from tests.support.fake_vllm import FakeVllm
from tests.support.runs import Lines, diagnose, evaluate

CHECKPOINT = load_checkpoint(BASE)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    made = FakeVllm(CHECKPOINT, plain=True)
    yield made
    made.stop()


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return without_weights(tmp_path, monkeypatch)


def without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's folder without its weights; loading any would fail."""

    def load(*_: object, **__: object) -> Checkpoint:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_checkpoint", load)
    return Path(shutil.copytree(BASE, tmp_path / "base", ignore=lambda *_: ["model.safetensors"]))


def config(url: str | None, task: dict[str, str] | None = None, **more: Any) -> Config:
    engine = {"name": "vllm", "urls": [url], "start_seconds": 1} if url else {"slots": 8}
    return parse_config(
        {
            "rollout": {"max_turns": 2, "max_turn_tokens": 24, "max_tokens": 96},
            "eval": {"questions": 4, "samples": 2, "k": 2, "load": url is None} | more,
            "engine": engine,
            "task": task or {"name": "lab"},
        }
    )


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("model", "step")}


def test_it_gives_the_figures_of_the_model_that_is_served(
    tmp_path: Path, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws as with the weights in this process, of which nothing is loaded."""
    loaded = evaluate(config(None), BASE, tmp_path / "loaded", Lines())
    with monkeypatch.context() as patched:
        base = without_weights(tmp_path, patched)
        served = evaluate(config(fake.url), base, tmp_path / "served", Lines())
    assert figures(served) == figures(loaded)
    assert (served["model"], served["step"]) == ("policy (/models/policy)", None)
    identity = json.loads((tmp_path / "served/evaluation/identity.json").read_text())
    assert identity["served model"] == "policy (/models/policy)"


def test_every_server_gets_its_slots(tmp_path: Path, fake: FakeVllm, processor: Path) -> None:
    """Two servers of four slots work on eight rollouts at once; neither is ever sent more."""
    other = FakeVllm(CHECKPOINT, plain=True)
    now, most = Counter[FakeVllm](), Counter[FakeVllm]()

    async def counted(server: FakeVllm, say: Any, *given: Any) -> Any:
        now[server] += 1
        most[server] = max(most[server], now[server])
        try:
            return await say(*given)
        finally:
            now[server] -= 1

    try:
        for server in (fake, other):
            server.delay = 0.2
            server._say = partial(counted, server, server._say)
        urls = {"urls": (fake.url, other.url), "slots": 4}
        asked = config(fake.url, questions=8)
        both = asked.model_copy(update={"engine": asked.engine.model_copy(update=urls)})
        assert evaluate(both, processor, tmp_path / "out", Lines())["unscored"] == 0
        assert most == {fake: 4, other: 4}
    finally:
        other.stop()


def test_it_goes_on_with_the_same_model_alone(
    tmp_path: Path, fake: FakeVllm, processor: Path
) -> None:
    out, file = tmp_path / "out", tmp_path / "test.jsonl"
    rows = [{"id": f"q{i}", "question": f"{i} and 1?", "answer": str(i + 1)} for i in range(6)]
    write_jsonl(file, *rows)
    task = {"name": "data", "path": str(file)}
    evaluate(config(fake.url, task), processor, out, Lines())
    asked = len(fake.bodies)
    fake.root = "/models/other"
    said = r"of the model 'policy \(/models/policy\)', the engine serves 'policy \(/models/other"
    with pytest.raises(ShelfError, match=said):
        evaluate(config(fake.url, task, questions=5), processor, out, Lines())
    with pytest.raises(ShelfError, match=r"eval\.load: expected True, got False"):
        evaluate(config(None, task, questions=5), processor, out, Lines())
    fake.root = "/models/policy"
    more = evaluate(config(fake.url, task, questions=5), processor, out, Lines())
    assert more["questions"] == 5 and fake.bodies[asked:]
    fake.die()
    again = evaluate(config(fake.url, task, questions=5), processor, out, Lines())
    assert again == more  # All is there: nobody is asked, not even for a name.


def test_a_penalty_does_not_part_an_engine_from_its_model(tmp_path: Path) -> None:
    """The comparison at the start samples without it; the figures' rollouts have it."""
    fake = FakeVllm(CHECKPOINT)
    try:
        asked = config(fake.url, load=True, questions=2)
        rollout = asked.rollout.model_copy(update={"presence_penalty": 1.5})
        evaluate(asked.model_copy(update={"rollout": rollout}), BASE, tmp_path, Lines())
        of = {body["request_id"].split("-", 2)[2].split("/")[0]: body for body in fake.bodies}
        penalties = {name: b["sampling_params"]["presence_penalty"] for name, b in of.items()}
        assert penalties == {"parity": 0.0, "eval": 1.5}
    finally:
        fake.stop()


def test_servers_that_see_other_pictures_are_refused_at_the_start(
    tmp_path: Path, fake: FakeVllm, processor: Path
) -> None:
    images = fake.checkpoint.processor.image_processor
    images.size = {"shortest_edge": 256, "longest_edge": 1024}
    with pytest.raises(UserError, match=r"^question .* cannot be sampled: .*server computed on"):
        evaluate(config(fake.url), processor, tmp_path / "out", Lines())
    assert not (tmp_path / "out/evaluation").exists()


def test_nobody_there_and_no_model_to_diagnose(
    tmp_path: Path, fake: FakeVllm, processor: Path
) -> None:
    with pytest.raises(UserError, match=r"eval\.load.*: a diagnosis measures the entropy"):
        diagnose(config(fake.url), processor, tmp_path / "out", Lines())
    fake.die()
    with pytest.raises(UserError, match=r"no healthy server at"):
        evaluate(config(fake.url), processor, tmp_path / "out", Lines())


def test_merged_weights_that_bfloat16_has_rounded_are_refused(
    tmp_path: Path, fake: FakeVllm, processor: Path
) -> None:
    shutil.move(processor, tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    base = {"base_model_name_or_path": "start"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(base))
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    with pytest.raises(CheckpointError, match=r"rounded; those of its run are start with .*load ="):
        evaluate(config(fake.url), tmp_path / "model", tmp_path / "out", Lines())
