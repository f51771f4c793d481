"""The agent loop: think, call, observe, answer; one coroutine per trajectory.

This module owns the limits, the stop reasons and the rule whose fault an ending is:

- An answer is graded. Running out of turns or tokens scores 0 (it is the model's fault: the
  recipe's limits are part of the task). So does a turn that calls a tool and then ends the whole
  text (`<|endoftext|>`) instead of the turn: the model never saw anything follow that (choice).
- If the task has an environment, it is told every turn without a call, the last allowed one too.
  The turn is the answer if the environment says that the episode is over.
- A fault of a tool, the environment or the engine is an infrastructure fault, and so is running out
  of wall time: the trajectory keeps what was sampled, says why in `fault`, and stays unscored. Wall
  time measures this machine and its load, not the policy (choice); the time that a trajectory waits
  for a place, in the engine's queue or a tool's, does not count (`axpo.clock`).
- If the grader fails, the answer stays unscored too.

Every tool is told once that a trajectory is over, however it ended, by cancellation as well.

On the last allowed turn no call is run. A turn that reaches a token limit ends the trajectory,
and its calls are not run: what would have followed is unknown (choice). The first `MAX_CALLS` calls
of a turn are run; the model reads that the others were not. Without this bound a policy could
write a turn that lasts until the wall time is over, and stay unscored. Each tool bounds the time of
the code that it runs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from axpo.algorithms.entropy import opening_entropy
from axpo.chat.parsing import ParsedCall, ParsedTurn
from axpo.clock import Clock
from axpo.config import RolloutSettings
from axpo.engines.base import Completion, Engine, Finish, Picture, Request, Sampling
from axpo.errors import EngineError, UserError
from axpo.rollout.episodes import NAME as ENVIRONMENT
from axpo.rollout.paths import Path, remember_views
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Example
from axpo.tasks.environment import Reply
from axpo.tasks.grading import Graders, Verdict
from axpo.tools.base import Observation, Tool, ToolContext
from axpo.tools.runner import CallResult, refuse, run_call
from axpo.tools.toolbox import Toolbox
from axpo.tree import Call, CallStatus, Origin, Segment, StopReason, Trajectory

Grade = Callable[[Example, Trajectory], Awaitable[Verdict]]
"""Grades (example, rollout that answered it, from its prompt on): `axpo.tasks.grading.Graders`."""
UNANSWERED = (StopReason.MAX_TURNS, StopReason.MAX_TOKENS, StopReason.END_OF_TEXT)
"""Endings without an answer that are the policy's own doing; they score 0."""
MAX_CALLS = 16
"""The most calls of one turn that are run (choice)."""


def request_seed(seed: int, trajectory: str, turn: int) -> int:
    """A request's seed, which depends neither on what is sampled beside it nor on the order."""
    digest = hashlib.sha256(f"{seed}/{trajectory}/{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def request_priority(path: Path) -> int:
    """A path's priority in an engine's queue: the number of turns that are behind it.

    Later turns go before first turns: the engine ends what it began, while it still keeps the keys
    and values of it, before it begins more. A path that goes on from a cut in the middle of a turn
    counts that turn as behind it.
    """
    return path.turn + bool(path.current_turn)


@dataclass(slots=True)
class AgentStats:
    """Wall seconds since the start in tools and environments, in grading, and waiting for places.

    They are summed over trajectories, which overlap each other and the engine's work.
    """

    seconds_tools: float = 0.0
    seconds_grade: float = 0.0
    seconds_waited: float = 0.0


class Agent:
    """Runs trajectories with one engine, one set of tools and one recipe's limits.

    With `top_logprobs` above 0 the engine returns that many highest logprobs at every token, and
    the entropy of each turn's opening (`axpo.algorithms.entropy`) is noted in `Group.entropies`. A
    reward of at least `solved_at` solves a question. `episodes` are the task's environments
    (`axpo.rollout.episodes`). `graders` (if `grade` is theirs) are closed with the agent.
    """

    def __init__(
        self,
        engine: Engine,
        rendering: Rendering,
        tools: Mapping[str, Tool],
        settings: RolloutSettings,
        grade: Grade,
        top_logprobs: int = 0,
        solved_at: float = 1.0,
        episodes: Toolbox | None = None,
        graders: Graders | None = None,
    ) -> None:
        if set(tools) != set(rendering.tools):
            raise ValueError(
                f"the prompt offers the tools {sorted(rendering.tools)}, "
                f"but the agent has {sorted(tools)}"
            )
        self.engine = engine
        self.rendering = rendering
        self.tools = Toolbox.of(tools)
        self.settings = settings
        self.grade = grade
        self.top_logprobs = top_logprobs
        self.solved_at = solved_at
        self.episodes = episodes
        self.graders = graders or Graders()
        self.stats = AgentStats()

    @property
    def figures(self) -> dict[str, float]:
        """What graders and engine did since the start, as metrics."""
        return {**self.graders.figures, **self.engine.figures}

    async def close(self) -> None:
        """End the tools, the environments, the graders and the engine."""
        await self.end()
        await self.graders.close()
        await self.engine.close()

    async def end(self) -> None:
        """End the tools and the environments; graders and engine go on."""
        await self.tools.close()
        if self.episodes is not None:
            await self.episodes.close()

    def room(self, path: Path) -> int:
        """The number of tokens that the limits leave for the path's current turn."""
        settings = self.settings
        return min(
            settings.max_turn_tokens - len(path.current_turn), settings.max_tokens - path.length
        )

    async def run(self, path: Path, id: str, seed: int) -> Trajectory:
        """Go on from `path` until the trajectory ends; return what was added to the path.

        Pictures that tools return are put into the path's group. Raises `UserError` if a tool does
        not start, and `BudgetSpent`.
        """
        await self.tools.start()
        trajectory = Trajectory(id, solved_at=self.solved_at)
        clock = Clock(self.settings.max_seconds)
        try:
            async with clock:
                await self._turns(path, trajectory, seed)
        except TimeoutError:
            if not clock.expired:
                raise
            trajectory.stop = StopReason.MAX_SECONDS
            trajectory.fault = f"no answer after {self.settings.max_seconds:g} s"
        except EngineError as error:
            trajectory.stop = StopReason.ENGINE_FAULT
            trajectory.fault = f"engine: {error}"
        finally:
            trajectory.seconds = clock.worked
            self.stats.seconds_waited += clock.waited
            try:
                await self.tools.end(id)
            finally:
                if self.episodes is not None:
                    await self.episodes.end(id)
        await self.score(path, trajectory)
        return trajectory

    async def _turns(self, path: Path, trajectory: Trajectory, seed: int) -> None:
        while trajectory.stop is None:
            completion = await self._sample(path, trajectory, seed)
            if completion is None:
                trajectory.stop = StopReason.MAX_TOKENS
                return
            parsed = self.rendering.parse(path.current_turn, path.call_at)
            if completion.finish is Finish.LENGTH:
                trajectory.stop = StopReason.MAX_TOKENS
            elif not parsed.calls:
                await self._say(path, trajectory, parsed)
            elif self.rendering.ends_text(path.current_turn):
                trajectory.stop = StopReason.END_OF_TEXT
            elif path.turn >= self.settings.max_turns:
                trajectory.stop = StopReason.MAX_TURNS
            await self._call(path, trajectory, parsed.calls)

    async def _sample(self, path: Path, trajectory: Trajectory, seed: int) -> Completion | None:
        """Sample the rest of the current turn; None if a token limit leaves no room."""
        settings, room = self.settings, self.room(path)
        if room < 1:
            return None
        sampling = Sampling(
            max_tokens=room,
            seed=request_seed(seed, trajectory.id, path.turn),
            stop=self.rendering.stop,
            banned=self.rendering.banned,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            presence_penalty=settings.presence_penalty,
            top_logprobs=self.top_logprobs,
        )
        id = f"{trajectory.id}/t{path.turn}"
        tokens, pictures = tuple(path.tokens), tuple(path.pictures)
        completion = await self.engine.generate(
            Request(id, path.group.id, tokens, pictures, sampling, request_priority(path))
        )
        if completion.top_logprobs:
            entropy = opening_entropy(completion.top_logprobs, self.rendering.vocabulary)
            path.group.entropies[id] = entropy
        path.add_policy(completion.tokens)
        trajectory.segments += _sampled(id, completion)
        return completion

    async def _say(self, path: Path, trajectory: Trajectory, turn: ParsedTurn) -> None:
        """Take a turn without a call as the answer, unless the environment goes on."""
        reply = await self._reply(path, trajectory, turn.answer)
        if reply is None:
            return
        if reply.over:
            trajectory.stop = StopReason.ANSWER
            trajectory.answer = turn.answer
            if turn.content is not None:
                trajectory.answer_start = path.offset(turn.content)
            if reply.verdict is not None:
                _judge(trajectory, reply.verdict)
        elif self.rendering.ends_text(path.current_turn):
            trajectory.stop = StopReason.END_OF_TEXT
        elif path.turn >= self.settings.max_turns:
            trajectory.stop = StopReason.MAX_TURNS
        else:
            reply = self.rendering.visible(reply)
            shown = self.rendering.reply(reply, f"{trajectory.id}/e{path.turn}")
            self._show(path, trajectory, [reply], *shown)

    async def _reply(self, path: Path, trajectory: Trajectory, said: str) -> Reply | None:
        """The environment's reply to a turn; None if it fails."""
        if self.episodes is None:
            return Reply(over=True)
        context = ToolContext(tuple(path.views), trajectory.id, tuple(path.told))
        arguments = {"example": path.example, "said": said}
        result = await self._timed(self.episodes, ENVIRONMENT, arguments, context)
        if isinstance(result.observation, Reply):
            return result.observation
        trajectory.stop = StopReason.ENVIRONMENT_FAULT
        ours = result.status is CallStatus.INFRA_ERROR
        trajectory.fault = result.error if ours else f"{ENVIRONMENT}: {result.error}"
        return None

    async def _call(self, path: Path, trajectory: Trajectory, calls: Sequence[ParsedCall]) -> None:
        """Run a turn's calls in order and add their observations; none is run after a stop."""
        results: list[CallResult] = []
        for place, call in enumerate(calls):
            result = await self._result(path, trajectory, call, place)
            results.append(result)
            self._record(path, trajectory, call, result)
            if result.status is CallStatus.INFRA_ERROR:
                trajectory.stop = StopReason.TOOL_FAULT
                trajectory.fault = f"tool {result.error}"
        if trajectory.stop is not None or not results:
            return
        observations = [self.rendering.visible(result.observation) for result in results]
        shown = self.rendering.observation(
            path.current_turn, observations, f"{trajectory.id}/o{path.turn}"
        )
        self._show(path, trajectory, observations, *shown)

    def _show(
        self, path: Path, trajectory: Trajectory, observations: Sequence[Observation],
        segment: Segment, pictures: Sequence[Picture],
    ) -> None:  # fmt: skip
        """Add what the policy sees after its turn, if the limits leave room for more."""
        if path.length + len(segment) >= self.settings.max_tokens:
            trajectory.stop = StopReason.MAX_TOKENS
            return
        views = [view for observation in observations for view in observation.views]
        remember_views(path.group, segment, pictures, views)
        path.add_observation(segment, views)
        trajectory.segments.append(segment)

    async def _result(
        self, path: Path, trajectory: Trajectory, call: ParsedCall, place: int
    ) -> CallResult:
        """Run one call; `place` counts the turn's calls from 0."""
        if call.error is not None or call.name is None:
            return refuse(CallStatus.MALFORMED, call.error or "no function name")
        if trajectory.stop is not None:
            return refuse(CallStatus.NOT_RUN, f"not run: {trajectory.stop}")
        if place >= MAX_CALLS:
            return refuse(CallStatus.NOT_RUN, f"not run: at most {MAX_CALLS} calls a turn")
        earlier = tuple(path.earlier.get(call.name, ()))
        context = ToolContext(tuple(path.views), trajectory.id, earlier)
        return await self._timed(self.tools, call.name, call.arguments, context)

    async def _timed(
        self, tools: Toolbox, name: str, arguments: Any, context: ToolContext
    ) -> CallResult:
        began = time.perf_counter()
        try:
            return await run_call(tools, name, arguments, context, self.rendering)
        finally:
            self.stats.seconds_tools += time.perf_counter() - began

    def _record(
        self, path: Path, trajectory: Trajectory, call: ParsedCall, result: CallResult
    ) -> None:
        """Note a call, unless it lies wholly in the prefix: then it is the source's, run again."""
        if path.offset(call.end) > path.base:
            start, end = path.offset(call.start), path.offset(call.end)
            trajectory.calls.append(
                Call(start, end, call.name, call.arguments, result.status, result.error)
            )

    async def score(self, path: Path, trajectory: Trajectory) -> None:
        """Give a trajectory that has ended its reward, if it has none and was not stopped by a
        fault; an answer that cannot be graded stays unscored. Raises `UserError`."""
        if trajectory.stop in UNANSWERED:
            trajectory.reward = 0.0
        elif trajectory.answer is not None and not trajectory.scored:
            began = time.perf_counter()
            try:
                _judge(trajectory, await self.grade(path.example, _whole(path, trajectory)))
            except UserError:  # a spent budget, a full disk
                raise
            except Exception as error:
                trajectory.fault = f"grading: {type(error).__name__}: {error}"
            finally:
                self.stats.seconds_grade += time.perf_counter() - began


def _judge(trajectory: Trajectory, verdict: Verdict) -> None:
    trajectory.reward, trajectory.rule = verdict.reward, verdict.rule
    trajectory.detail = verdict.detail


def _whole(path: Path, trajectory: Trajectory) -> Trajectory:
    """A copy that holds all that it was grown from, as if sampled from its prompt."""
    segments, calls = path.prefix.segments, path.prefix.calls
    return replace(
        trajectory,
        segments=[*segments, *trajectory.segments],
        calls=[*calls, *trajectory.calls],
        credit=[],
    )


def _sampled(id: str, completion: Completion) -> list[Segment]:
    """A completion as policy segments of one id, one per run of tokens of one weights version."""
    tokens, logprobs, versions = completion.tokens, completion.logprobs, completion.versions
    starts = [i for i, v in enumerate(versions) if i == 0 or v != versions[i - 1]]
    return [
        Segment(id, Origin.POLICY, tokens[a:b], logprobs[a:b], version=versions[a])
        for a, b in pairwise([*starts, len(tokens)])
    ]
