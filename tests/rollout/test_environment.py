"""Environments: their turns in the tree, their limits and faults, and how they are rebuilt."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from axpo.algorithms.arpo import Arpo
from axpo.algorithms.axpo import Axpo
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.unscored import failed, turn_reached
from axpo.checks import check_environment
from axpo.config import Config, LimitSettings, RolloutSettings, parse_config
from axpo.errors import ConfigError, DemonstrationError, UserError
from axpo.pictures import picture_digest
from axpo.report.trees import TreePayload
from axpo.rollout.agent import Agent
from axpo.rollout.branching import sample_question
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.episodes import NAME, episodes
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.tasks.base import Example, Task
from axpo.tasks.environment import Environment
from axpo.tasks.grading import Graders, Verdict
from axpo.tools import make_tools
from axpo.tools.base import Observation, Tool
from axpo.tree import Branch, CallStatus, Credit, Group, StopReason, Stream, Trajectory
from tests.support.rollouts import (
    LIMITS,
    ZOOM,
    FakeEngine,
    Say,
    decode,
    encode,
    example,
    make_rendering,
    zoom,
)


class Game(Environment):
    """Higher or lower, on a picture as wide as the guess; `games` are all that were made."""

    games: list[Game] = []  # noqa: RUF012

    def __init__(self, task: Task, example: Example) -> None:
        super().__init__(task, example)
        self.said: list[str] = []
        self.closed = 0
        self.games.append(self)

    def reply(self, said: str) -> Any:
        self.said.append(said)
        guess, secret = int(said), int(self.example.answer)
        if guess == secret:
            return Verdict(1.0, "found", f"guess {len(self.said)}")
        word = "low" if guess < secret else "high"
        return [f"{guess} is too {word}.", board(guess)]

    def close(self) -> None:
        self.closed += 1


def board(guess: int) -> Image.Image:
    return Image.new("RGB", (32 * guess, 64), "white")


def replying(reply: Callable[[Any, str], Any], **members: Any) -> type[Environment]:
    """An environment of which `reply` is the whole."""
    return type("Other", (Environment,), {"reply": reply, **members})


def played(kind: type[Environment]) -> Task:
    class Played(Task):
        environment = kind

    return Played()


def make_agent(
    kind: type[Environment],
    engine: FakeEngine,
    settings: RolloutSettings = LIMITS,
    tools: dict[str, Tool] | None = None,
    top_logprobs: int = 0,
) -> Agent:
    rendering = make_rendering(make_tools([ZOOM]) if tools is None else tools)
    asked = episodes(played(kind), rendering)
    return Agent(
        engine, rendering, rendering.tools, settings, Graders().grade, top_logprobs, episodes=asked
    )


@pytest.fixture(autouse=True)
def no_games() -> Iterator[None]:
    """Nothing of another test's; threads that were given up have ended."""
    Game.games.clear()
    yield
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join()


def play(
    kind: type[Environment], *says: Say, settings: RolloutSettings = LIMITS, **changes: Any
) -> tuple[Group, Trajectory]:
    """One rollout whose turns say these."""
    engine = FakeEngine({f"q/r0/t{i}": say for i, say in enumerate(says, start=1)})
    agent = make_agent(kind, engine, settings)
    group = new_group(agent.rendering, example(**changes), "q")
    asyncio.run(sample_group(agent, group, 1, 5))
    return group, group.rollouts[0]


def reply_text(words: str, tokens: int = 0) -> str:
    """What the policy reads of a reply, with a picture of so many tokens."""
    pads = "<|image_pad|>" * tokens
    shown = f"<|vision_start|>{pads}<|vision_end|>" if tokens else ""
    return f"\n<|im_start|>user\n{words}{shown}<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_a_game_by_hand() -> None:
    engine = FakeEngine(
        {"q/r0/t1": "hm</think>\n\n4", "q/r0/t2": "so</think>\n\n8", "q/r0/t3": "ah</think>\n\n7"}
    )
    agent = make_agent(Game, engine)
    group = new_group(agent.rendering, example(), "q")
    (rollout,) = asyncio.run(sample_group(agent, group, 1, 5)).rollouts
    assert [(s.id, str(s.origin)) for s in rollout.segments] == [
        ("q/r0/t1", "policy"), ("q/r0/e1", "environment"),
        ("q/r0/t2", "policy"), ("q/r0/e2", "environment"), ("q/r0/t3", "policy"),
    ]  # fmt: skip
    # A token is 16 x 16 pixels: 128 x 64 and 256 x 64 of them are 32 and 64 tokens.
    low, high = rollout.segments[1], rollout.segments[3]
    assert decode(low.tokens) == reply_text("4 is too low.", 32)
    assert decode(high.tokens) == reply_text("8 is too high.", 64)
    assert [(s.digest, s.length) for s in low.images] == [(picture_digest(board(4)), 32)]
    assert not low.logprobs
    assert (rollout.stop, rollout.answer) == (StopReason.ANSWER, "7")
    assert (rollout.reward, rollout.rule, rollout.detail) == (1.0, "environment: found", "guess 3")
    assert rollout.answer_start == rollout.tokens - len(encode("\n\n7<|im_end|>"))
    assert rollout.calls == [] and not rollout.uses_tool
    # The next turn is sampled after what was sampled and shown, token for token.
    path = tuple(t for s in group.path(rollout) for t in s.tokens)
    assert engine.requests[2].tokens == path[: -len(rollout.segments[4])]
    assert [p.digest for p in engine.requests[2].pictures][1:] == [
        picture_digest(board(4)), picture_digest(board(8)),
    ]  # fmt: skip
    assert [game.said for game in Game.games] == [["4", "8", "7"]]
    assert [game.closed for game in Game.games] == [1]


@pytest.mark.parametrize(
    ("reply", "judged"),
    [
        (lambda self, said: 0.25, (0.25, "environment", "")),
        (lambda self, said: Verdict(0.5, "half", "of it"), (0.5, "environment: half", "of it")),
        (lambda self, said: self.OVER, (1.0, "exact", "read '7', expected '7'")),
    ],
)
def test_who_judges_the_last_turn(reply: Any, judged: tuple[float, str, str]) -> None:
    _, rollout = play(replying(reply), "</think>7")
    assert (rollout.stop, rollout.answer) == (StopReason.ANSWER, "7")
    assert (rollout.reward, rollout.rule, rollout.detail) == judged


def test_an_environment_may_be_async() -> None:
    async def reply(self: Environment, said: str) -> Any:
        await asyncio.sleep(0)
        return 1.0 if said == "b" else "again"

    group, rollout = play(replying(reply), "</think>a", "</think>b")
    assert rollout.reward == 1.0
    assert decode(group.rollouts[0].segments[1].tokens) == reply_text("again")


def test_plain_replies_do_not_hold_up_the_loop() -> None:
    """Two that wait for each other: one thread, or the loop, would never end."""
    both = threading.Barrier(2)

    def reply(self: Environment, said: str) -> float:
        both.wait(timeout=20)
        return 1.0

    agent = make_agent(replying(reply), FakeEngine({}, "</think>7"))
    group = new_group(agent.rendering, example(), "q")
    asyncio.run(sample_group(agent, group, 2, 0))
    assert [r.reward for r in group.rollouts] == [1.0, 1.0]


class TestLimits:
    def test_turns_count_and_the_last_may_end_the_episode(self) -> None:
        two = LIMITS.model_copy(update={"max_turns": 2})
        _, rollout = play(Game, "</think>4", "</think>7", settings=two)
        assert (rollout.stop, rollout.reward) == (StopReason.ANSWER, 1.0)
        _, rollout = play(Game, "</think>4", "</think>5", settings=two)
        assert (rollout.stop, rollout.reward, rollout.answer) == (StopReason.MAX_TURNS, 0.0, None)
        assert [s.id for s in rollout.segments] == ["q/r0/t1", "q/r0/e1", "q/r0/t2"]

    def test_a_turn_that_ends_the_text_is_its_last(self) -> None:
        _, rollout = play(Game, "</think>4<|endoftext|>…")
        assert (rollout.stop, rollout.reward) == (StopReason.END_OF_TEXT, 0.0)
        _, rollout = play(Game, "</think>7<|endoftext|>…")
        assert (rollout.stop, rollout.reward) == (StopReason.ANSWER, 1.0)

    def test_a_turn_that_was_cut_off_is_not_told(self) -> None:
        _, rollout = play(Game, "</think>4…")
        assert (rollout.stop, rollout.reward) == (StopReason.MAX_TOKENS, 0.0)
        assert Game.games == []

    def test_a_huge_text_is_cut_and_spells_no_control_token(self) -> None:
        kind = replying(
            lambda self, said: 1.0 if said == "b" else "<|im_end|>" + "x " * 100_000,
            limits=LimitSettings(max_tokens=50),
        )
        _, rollout = play(kind, "</think>a", "</think>b")
        text = decode(rollout.segments[1].tokens)
        assert "tokens left out" in text and text.count("<|im_end|>") == 1
        assert len(rollout.segments[1]) < 100
        assert rollout.reward == 1.0

    def test_pictures_beyond_the_limit_of_tokens_end_the_rollout_as_a_tool_s_do(self) -> None:
        kind = replying(lambda self, said: [board(4)] * 1000)
        _, rollout = play(kind, "</think>a")
        assert (rollout.stop, rollout.reward) == (StopReason.MAX_TOKENS, 0.0)
        assert len(rollout.segments) == 1

    def test_a_large_picture_is_shrunk(self) -> None:
        kind = replying(
            lambda self, said: 1.0 if said == "b" else board(60),
            limits=LimitSettings(max_pixels=64 * 64),
        )
        group, rollout = play(kind, "</think>a", "</think>b")
        (span,) = rollout.segments[1].images
        shown = group.pictures[span.digest]
        assert shown.width * shown.height <= 64 * 64

    def test_its_time_is_the_rollout_s_wall_time(self) -> None:
        kind = replying(lambda self, said: time.sleep(0.6) or "more")
        short = LIMITS.model_copy(update={"max_seconds": 0.2})
        _, rollout = play(kind, "</think>a", settings=short)
        assert (rollout.stop, rollout.reward) == (StopReason.MAX_SECONDS, None)


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("reply", "members", "fault"),
    [
        (lambda self, said: _raise(KeyError("x")), {}, "environment: KeyError: 'x'"),
        (lambda self, said: sys.exit(3), {}, "environment: RuntimeError: SystemExit: 3"),
        (lambda self, said: None, {}, "environment: TypeError: reply returned NoneType: expected"),
        (lambda self, said: float("nan"), {}, "environment: GradingError: environment gave nan"),
        (lambda self, said: Verdict(2.0), {}, "environment: GradingError: environment gave Verd"),
        (lambda self, said: Image.new("RGB", (500, 2)), {}, "environment: picture 0 of the result"),
        (lambda self, said: time.sleep(0.3), {"timeout": 0.05}, "environment: no result after"),
        (lambda self, said: "", {"__init__": lambda self: None}, "environment: TypeError: "),
    ],
)
def test_what_an_environment_does_wrong_is_never_the_model_s_fault(
    reply: Any, members: dict[str, Any], fault: str
) -> None:
    group, rollout = play(replying(reply, **members), "</think>7")
    assert (rollout.stop, rollout.reward) == (StopReason.ENVIRONMENT_FAULT, None)
    assert rollout.fault is not None and rollout.fault.startswith(fault)
    assert (failed(rollout), turn_reached(group, rollout)) == ("environment", 1)


def test_a_fault_after_an_answered_turn_counts_the_turn() -> None:
    group, rollout = play(Game, "</think>4", "</think>what")
    assert rollout.fault is not None and "invalid literal for int" in rollout.fault
    assert turn_reached(group, rollout) == 2


def test_each_is_closed_once_however_it_ended() -> None:
    async def hang(request: Any) -> str:
        await asyncio.sleep(60)
        return ""

    async def scenario() -> None:
        script: dict[str, Say] = {f"q/r{i}/t1": "</think>4" for i in range(2)}
        agent = make_agent(Game, FakeEngine(script | {"q/r0/t2": "</think>oh"}, hang))
        group = new_group(agent.rendering, example(), "q")
        task = asyncio.create_task(sample_group(agent, group, 2, 0))
        while len(Game.games) < 2 or not all(len(game.said) for game in Game.games):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert [game.closed for game in Game.games] == [1, 1]


LOOKED = f"look</think>{zoom('[0, 0, 1000, 500]', index=0)}"
AT_TAG = len(encode("look</think><tool_call>"))


def played_and_looked() -> tuple[Agent, Group, Trajectory]:
    """Turn 1 is answered by the game, turn 2 zooms into its picture, turn 3 and 4 guess."""
    script: dict[str, Say] = {
        "q/r0/t1": "hm</think>\n\n4", "q/r0/t2": LOOKED, "q/r0/t3": "</think>6",
        "q/r0/t4": "</think>5",
        # Two continuations from the call's tag on: they see it answered, then guess.
        "q/r0/c0/t2": decode(encode(LOOKED)[AT_TAG:]), "q/r0/c0/t3": "</think>6",
        "q/r0/c0/t4": "</think>7",
        "q/r0/c1/t2": decode(encode(LOOKED)[AT_TAG:]), "q/r0/c1/t3": "</think>8",
        "q/r0/c1/t4": "</think>9",
    }  # fmt: skip
    limits = LIMITS.model_copy(update={"max_turns": 4})
    agent = make_agent(Game, FakeEngine(script), limits)
    group = new_group(agent.rendering, example(images=(), question="Guess."), "q")
    asyncio.run(sample_group(agent, group, 1, 5))
    return agent, group, group.rollouts[0]


def grown(agent: Agent, group: Group, cut: int, k: int) -> Branch:
    branch = group.fork(group.rollouts[0], cut)
    asyncio.run(resample(agent, group, branch, k, 4))
    return branch


class TestContinuations:
    def test_axpo_goes_on_from_a_call_in_a_game(self) -> None:
        """Only the zoom is tool use, and where the prefix is cut; a new game knows turn 1."""
        agent, group, source = played_and_looked()
        (call,) = source.calls
        assert (call.name, call.status) == (ZOOM, CallStatus.OK)
        assert [s.id[-2:] for s in source.segments] == ["t1", "e1", "t2", "o2", "t3", "e3", "t4"]
        assert (source.stop, source.reward) == (StopReason.MAX_TURNS, 0.0)
        (candidate,) = Axpo().candidates(group)
        before = sum(len(s) for s in source.segments[:2])
        assert candidate.cut == before + AT_TAG
        branch = grown(agent, group, candidate.cut, 2)
        first, second = branch.continuations
        # The source said 4 and 6: c0 repeats its 6 and must read what the source read.
        assert [game.said for game in Game.games] == [
            ["4", "6", "5"], ["4", "6", "7"], ["4", "8", "9"],
        ]  # fmt: skip
        assert [s.id[-2:] for s in first.segments] == ["t2", "o2", "t3", "e3", "t4"]
        assert first.segments[3].tokens == source.segments[5].tokens
        assert decode(second.segments[3].tokens) == reply_text("8 is too high.", 64)
        assert [(c.reward, c.rule) for c in branch.continuations] == [
            (1.0, "environment: found"),
            (0.0, ""),
        ]
        assert first.detail == "guess 3"
        assert branch.recovered is True

    def test_arpo_goes_on_behind_a_reply(self) -> None:
        """N = 4 of which 1 from the prompt: forks at the openings of turns 2 and 3."""
        script: dict[str, Say] = {
            "q/r0/t1": "</think>4", "q/r0/t2": "</think>5", "q/r0/t3": "</think>6",
            "q/r0/c0/t2": "</think>8", "q/r0/c0/t3": "</think>7",
            "q/r0/b1c0/t3": "</think>9", "q/r0/c0/c0/t3": "</think>7",
        }  # fmt: skip
        agent = make_agent(Game, FakeEngine(script, top=lambda _: (-0.1,) * 10), top_logprobs=10)
        group = new_group(agent.rendering, example(), "q")
        # Every turn's entropy is the first's: P = 0.5 > 0.4.
        arpo = Arpo(rollouts=4, initial_share=0.25, entropy_threshold=0.4)
        asyncio.run(sample_question(agent, group, arpo, 0, Task()))
        ends = {t.id: (t.reward, t.answer) for t in group.trajectories()}
        assert ends == {
            "q/r0": (0.0, None), "q/r0/c0": (1.0, "7"),
            "q/r0/b1c0": (0.0, None), "q/r0/c0/c0": (1.0, "7"),
        }  # fmt: skip
        assert sorted(game.said for game in Game.games) == [
            ["4", "5", "6"], ["4", "5", "9"], ["4", "8", "7"], ["4", "8", "7"],
        ]  # fmt: skip
        fresh = Game(Task(), example())
        fresh.reply("4")
        words, _ = fresh.reply("8")
        shown = group.trajectory("q/r0/c0").segments[1]
        assert decode(shown.tokens) == reply_text(words, 64)

    def test_one_that_answers_otherwise_is_found_out(self) -> None:
        made: list[int] = []

        class Moody(Environment):
            def __init__(self, task: Task, example: Example) -> None:
                made.append(len(made))
                self.mood = made[-1]

            def reply(self, said: str) -> Any:
                return f"mood {self.mood}" if said == "a" else self.OVER

        script: dict[str, Say] = {"q/r0/t1": "</think>a", "q/r0/t2": "</think>7"}
        agent = make_agent(Moody, FakeEngine(script | {"q/r0/c0/t2": "</think>7"}))
        group = new_group(agent.rendering, example(), "q")
        asyncio.run(sample_group(agent, group, 1, 0))
        cut = sum(len(s) for s in group.rollouts[0].segments[:2])
        (continuation,) = grown(agent, group, cut, 1).continuations
        assert (continuation.stop, continuation.reward) == (StopReason.ENVIRONMENT_FAULT, None)
        assert continuation.fault is not None
        assert continuation.fault.startswith("environment: rebuilt, it does not answer turn 1")

    def test_one_that_cannot_be_rebuilt_stops_a_run_that_tries(self) -> None:
        kind = type("Live", (Game,), {"rebuilds": False})
        script: dict[str, Say] = {"q/r0/t1": "</think>4", "q/r0/t2": "</think>7"}
        agent = make_agent(kind, FakeEngine(script | {"q/r0/c0/t2": "</think>7"}))
        group = new_group(agent.rendering, example(), "q")
        asyncio.run(sample_group(agent, group, 1, 0))
        cut = sum(len(s) for s in group.rollouts[0].segments[:2])
        with pytest.raises(UserError, match=r"Live cannot be rebuilt .* q/r0/c0 goes on from"):
            grown(agent, group, cut, 1)

    def test_the_grader_sees_the_whole_rollout(self) -> None:
        """Segments and calls from the prompt on, also of a continuation."""
        seen: list[Trajectory] = []

        async def look(example: Example, trajectory: Trajectory) -> Verdict:
            seen.append(trajectory)
            return Verdict(1.0, "looked")

        calls = f"</think>{zoom()}"
        script: dict[str, Say] = {
            "q/r0/t1": calls, "q/r0/t2": calls, "q/r0/t3": "</think>7",
            "q/r0/c0/t2": decode(encode(calls)[2:]), "q/r0/c0/t3": "</think>8",
        }  # fmt: skip
        agent = make_agent(Game, FakeEngine(script))
        agent.episodes, agent.grade = None, look
        group = new_group(agent.rendering, example(), "q")
        asyncio.run(sample_group(agent, group, 1, 0))
        second = group.rollouts[0].calls[1].start
        grown(agent, group, second + 1, 1)
        whole = seen[1]
        assert [call.start for call in whole.calls] == [call.start for call in seen[0].calls]
        assert whole.segments == group.after_prompt(group.branches[0].continuations[0])
        assert group.branches[0].continuations[0].rule == "looked"


class Live(Game):
    rebuilds = False


class Playing(Task):
    environment = Live


class NotOne(Task):
    environment = Task  # pyright: ignore[reportAssignmentType]


class Silent(Task):
    environment = Environment


def config(task: str, **algorithm: Any) -> Config:
    return parse_config({"task": {"name": f"{__name__}:{task}"}, "algorithm": algorithm})


class TestStart:
    @pytest.mark.parametrize("name", ["axpo", "arpo"])
    def test_algorithms_that_go_on_refuse_it_by_name(self, name: str) -> None:
        said = rf"algorithm\.name: '{name}' goes on .* the environment Live of the task '.*Playing'"
        with pytest.raises(ConfigError, match=said):
            check_environment(config("Playing", name=name), {"train"})
        check_environment(config("Playing", name=name), {"eval"})

    def test_others_take_it(self) -> None:
        check_environment(config("Playing", name="grpo"), {"train", "sft", "eval"})
        check_environment(config("Playing", name="rltf"), {"train"})
        check_environment(config("Playing", name="axpo", prefix="scratch"), {"train"})
        assert (Grpo().continues, Axpo().continues, Arpo().continues) == (False, True, True)

    def test_a_diagnosis_refuses_it(self) -> None:
        with pytest.raises(ConfigError, match=r"axpo diagnose goes on .* environment Live"):
            check_environment(config("Playing", name="grpo"), {"diagnose"})

    @pytest.mark.parametrize(("task", "name"), [("NotOne", "Task"), ("Silent", "Environment")])
    def test_what_is_no_environment_is_refused(self, task: str, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"has {name} as its environment, expected a class"):
            check_environment(config(task), {"train"})


def test_a_demonstration_is_answered_by_the_environment() -> None:
    rendering = make_rendering({})
    turns = ("hm</think>\n\n4", "ah</think>\n\n7")
    shown = example(demonstration=turns, images=())
    asked = episodes(played(Game), rendering)
    group = asyncio.run(demonstrate(rendering, {}, LIMITS, shown, "d", asked))
    (rollout,) = group.rollouts
    assert [str(s.origin) for s in rollout.segments] == ["policy", "environment", "policy"]
    assert (rollout.reward, rollout.rule, rollout.detail) == (None, "", "")
    assert rollout.credit == [Credit(0, rollout.tokens, 1.0, Stream.DEMONSTRATION, 1.0)]
    early = example(demonstration=turns[:1], images=())
    with pytest.raises(DemonstrationError, match="or before the episode is over after turn 1"):
        asyncio.run(demonstrate(rendering, {}, LIMITS, early, "d", asked))


def test_the_tree_browser_tells_it_from_a_tool() -> None:
    _, group, _ = played_and_looked()
    payload = TreePayload(lambda ids: [decode([i]) for i in ids])
    assert payload.add(0, 1, group, 10_000_000)
    (rollout,) = payload.groups[0]["rollouts"]
    kinds = list(dict.fromkeys(piece["o"] for piece in rollout["pieces"]))
    assert kinds == ["policy", "environment", "observation"]
    group, _ = play(Game, "</think>7")
    assert payload.add(0, 2, group, 10_000_000)
    (won,) = payload.groups[1]["rollouts"]
    assert (won["rule"], won["detail"]) == ("environment: found", "guess 1")


def test_an_observation_is_taken_as_it_is() -> None:
    kind = replying(lambda self, said: 1.0 if said == "b" else Observation("seen"))
    _, rollout = play(kind, "</think>a", "</think>b")
    assert decode(rollout.segments[1].tokens) == reply_text("seen")
