"""Figures of token differences by hand, and the whole command on a tiny model."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axpo.training import rl
from axpo.training.parity import limit
from axpo.tree import Credit, Group, Stream
from benchmarks.numerics import __main__ as command
from benchmarks.numerics.figures import (
    CHECKED,
    Tokens,
    classes,
    figures,
    importance,
    outliers,
    spread,
    tail,
    touched,
    votes,
)
from benchmarks.numerics.page import render
from tests.support.families import family_checkpoint

FLOAT32 = partial(limit, torch.float32)
BFLOAT16 = partial(limit, torch.bfloat16)


def tokens(lengths: list[int], **logprobs: Any) -> Tokens:
    """Rollouts of one turn each; logprobs are -1 where nothing else is given."""
    size = sum(lengths)
    given = {name: np.broadcast_to(np.asarray(value, float), size).copy()
             for name, value in logprobs.items()}  # fmt: skip
    names = ("engine", "trainer", "again", "exact", "before")
    missing = {"exact": np.nan, "before": np.nan}
    return Tokens(
        rollout=np.repeat(np.arange(len(lengths)), lengths),
        turn=np.zeros(size, int),
        place=np.concatenate([np.arange(n) for n in lengths]),
        call=np.arange(size) % 2 == 1,
        text=np.array([f"t{i}" for i in range(size)]),
        **{n: given.get(n, np.full(size, missing.get(n, -1.0))) for n in names},
    )


def test_sizes_by_hand() -> None:
    sizes = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = spread(sizes)
    assert (found["mean"], found["median"], found["max"]) == (2.0, 2.0, 4.0)
    assert found["q99"] == pytest.approx(3.96)
    assert spread(sizes[:0]) == {"tokens": 0}
    assert tail(sizes) == [(0.0, 1.0), (1.0, 0.8), (2.0, 0.6), (3.0, 0.4), (4.0, 0.2)]


def test_classes_have_their_lower_edge_and_the_last_one_both() -> None:
    sizes, values = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.5, 0.9, 1.0])
    low, high = classes(sizes, values, (0.0, 0.5, 1.0))
    assert (low["tokens"], low["mean"]) == (1, 1.0)
    assert (high["tokens"], high["mean"], high["max"]) == (3, 3.0, 4.0)


def test_tokens_that_nobody_asked_about_count_in_no_figure_of_it() -> None:
    again = np.array([-1.5, np.nan, -1.0, np.nan])
    found = figures(tokens([4], again=again), FLOAT32, 0.2, 0.4)
    assert (found["rounding"]["tokens"], found["rounding"]["mean"]) == (2, 0.25)


def test_outliers_are_the_largest_with_what_is_before_them_in_their_turn() -> None:
    engine = np.full(14, -1.0)
    engine[12], engine[1] = -3.0, -0.5
    first, second = outliers(tokens([2, 12], engine=engine))[:2]
    assert (first["difference"], first["text"], first["place"]) == (-2.0, "t12", 10)
    assert first["before"] == "t4t5t6t7t8t9t10t11"
    assert first["probability"] == pytest.approx(math.exp(-3))
    assert (second["difference"], second["before"], second["call"]) == (0.5, "t0", True)


def test_importance_weights_by_hand() -> None:
    """Two sequences: weights 2 and 2, so 4 together; weights 1/4 and 1, so 1/4 together."""
    trainer = -1 + np.log([2.0, 2.0, 0.25, 1.0])
    found = importance(tokens([2, 2], trainer=trainer))
    token, sequence = found["token"], found["sequence"]
    assert token["mean"] == pytest.approx(5.25 / 4)
    assert token["below_inverse"] == 0.25
    assert token["effective"] == pytest.approx(5.25**2 / (4 * (4 + 4 + 1 / 16 + 1)))
    assert (sequence["count"], sequence["max"], sequence["min"]) == pytest.approx((2, 4.0, 0.25))
    assert (sequence["capped"], sequence["tokens"]) == (0.5, 2.0)
    assert sequence["deviation_of_log"] == pytest.approx(math.log(16) / 2)


def test_shares_of_limits_by_hand() -> None:
    """The last check's 8 rollouts of 60 tokens differ by 0.3, beyond 0.1 + 0.32 / sqrt(480); each
    holds one window of 48, whose limit is 0.1 + 0.32 / sqrt(48). The clip cuts exp(-0.3) < 0.8."""
    off = np.zeros(2 * CHECKED * 60)
    off[CHECKED * 60 :] = 0.3
    found = touched(tokens([60] * 2 * CHECKED, engine=off - 1), BFLOAT16, 0.2, 0.4)
    assert (found["start"]["checks"], found["start"]["over"]) == (2, 0.5)
    assert found["start"]["mean"] == pytest.approx(0.3 / (0.1 + 0.32 / math.sqrt(480)))
    assert found["start"]["ratio_over"] == 0.5
    assert (found["probe"]["checks"], found["probe"]["over"]) == (2 * CHECKED, 0.5)
    assert found["probe"]["mean"] == pytest.approx(0.3 / (0.1 + 0.32 / math.sqrt(48)))
    assert found["step"]["mean"] == pytest.approx(0.15 / (0.1 + 0.32 / math.sqrt(960)))
    assert found["clip"] == 0.5


def test_stale_weights_lose_the_vote_and_new_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    trainer = generator.normal(-2, 0.5, 480)
    rounding = [generator.normal(0, 0.01, 480) for _ in range(2)]
    before = trainer + generator.normal(0, 0.5, 480)
    found = tokens([480], trainer=trainer, engine=trainer + rounding[0],
                   again=trainer + rounding[1], before=before)  # fmt: skip
    assert votes(found) == {"right": 0.0, "stale": 1.0}
    assert figures(found, BFLOAT16, 0.2, 0.4)["votes"]["stale"] == 1.0


def test_tokens_come_back_from_their_file(tmp_path: Path) -> None:
    some = tokens([2, 3], engine=np.arange(5) / 10 - 2)
    some.save(tmp_path / "x.npz")
    back = Tokens.read(tmp_path / "x.npz")
    assert list(back.text) == list(some.text) and (back.engine == some.engine).all()
    assert np.isnan(back.exact).all() and list(back.rollout) == [0, 0, 1, 1, 1]


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numerics") / "model"
    family_checkpoint("llama").save(folder)
    return folder


def measured(model: Path, out: Path, name: str, *given: str) -> dict[str, Any]:
    settings = (
        'task.sets=[{name="spell_backward"}]', "rollout.tools=[]", "rollout.max_turn_tokens=60",
        "algorithm.name=grpo", "rl.questions=2", "rl.updates=1", "algorithm.rollouts=2",
        "rl.optimizer.learning_rate=1e-3",
    )  # fmt: skip
    files = ("--results", str(out / "numerics.json"), "--raw", str(out / "raw"))
    sizes = ("--questions", "4", "--rollouts", "2", "--also", "2")
    command.main([name, "smollm2", f"model.path={model}", *settings, *sizes, *given, *files])
    return json.loads((out / "numerics.json").read_text())


def turned(_run: object, group: Group) -> None:
    """Credit where a random model earns none: every other rollout is the better one."""
    for i, rollout in enumerate(group.rollouts):
        rollout.credit = [Credit(0, rollout.tokens, (-1.0) ** i, Stream.ROLLOUT, 1.0)]


def test_the_engine_in_this_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding alone in float32; in bfloat16 that of each side against exact logprobs as well. Two
    updates at a large rate change more than either rounds."""
    monkeypatch.setattr(rl, "assign_credit", turned)
    measured(model, tmp_path, "float32")
    files = ("model.dtype=bfloat16", "--updates", "2", "--model", "tiny")
    found = measured(model, tmp_path, "bfloat16", *files)
    exact, rounded = found["float32"], found["bfloat16"]
    assert exact["tokens"] > 200 and exact["rollouts"] == 8
    assert 0 < exact["size"]["mean"] < 1e-5 and exact["size"]["max"] < 1e-4
    assert exact["rounding"]["tokens"] < exact["tokens"]  # the first 2 questions alone
    assert exact["weights"]["token"]["capped"] == 0 and "exact" not in exact
    assert 1e-4 < rounded["size"]["mean"] < 0.05
    assert 1e-4 < rounded["exact"]["engine"]["mean"] < 0.05
    assert rounded["change"]["mean"] > 2 * rounded["size"]["mean"]
    assert (rounded["model"], rounded["updates"]) == ("tiny", 2)
    page = (tmp_path / "numerics.md").read_text()
    assert page.count("| bfloat16 |") >= 6 and (tmp_path / "differences-dark.png").is_file()


def test_figures_are_made_anew_from_the_tokens(model: Path, tmp_path: Path) -> None:
    first = measured(model, tmp_path, "case")["case"]
    changed = first | {"size": None, "model": "kept"}
    (tmp_path / "numerics.json").write_text(json.dumps({"case": changed}))
    assert measured(model, tmp_path, "case", "--again")["case"] == first | {"model": "kept"}


def test_an_empty_page_says_nothing_false(tmp_path: Path) -> None:
    assert "differences.png" not in render({}, tmp_path / "numerics.md").read_text()
