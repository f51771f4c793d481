"""Stored answers graded again, without sampling: another grader, another judge, a corrected one.

Graded is what a grader was asked for when it was sampled: answers, those among them that stayed
unscored because their grading failed. What ended without an answer, what a tool's or an engine's
fault left unscored, and the verdicts of a task's environment stay as they are.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from axpo.algorithms.unscored import failed
from axpo.errors import UserError
from axpo.evaluation.summary import compare, summarize
from axpo.rollout.paths import whole
from axpo.rollout.sampling import together
from axpo.tasks.base import Example
from axpo.tasks.environment import JUDGED_BY
from axpo.tasks.grading import Graders
from axpo.tree import Branch, Group, StopReason, Trajectory

AT_ONCE = 64
"""Answers that are graded at once (choice); a judge has its own bound."""
METRICS = ("pass@", "accuracy")
"""How the names begin of the metrics that verdicts change."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What an answer is worth, and by what rule; `reward` None and what failed where it is not
    scored."""

    reward: float | None
    rule: str
    detail: str

    @classmethod
    def of(cls, trajectory: Trajectory) -> Standing:
        """That of a trajectory as it is stored."""
        if trajectory.reward is None:
            return cls(None, f"unscored: {failed(trajectory)}", trajectory.fault or "")
        return cls(trajectory.reward, trajectory.rule or str(trajectory.stop), trajectory.detail)


@dataclass(frozen=True, slots=True)
class Regraded:
    """An answer that was graded again, and its verdicts; `question` is the example's id."""

    group: str
    question: str
    rollout: str
    grading: str
    answer: str
    was: Standing
    now: Standing


@dataclass(frozen=True, slots=True)
class Regrading:
    """How stored answers are graded: by `graders`, each by the grader that `grading` gives for its
    group; a reward of `solved` is right (None: the stored one)."""

    graders: Graders
    grading: Callable[[Group], str]
    solved: float | None = None

    async def groups(
        self, groups: Sequence[Group], progress: Callable[[int], None]
    ) -> tuple[list[Group], list[Regraded]]:
        """Copies of the groups with the new verdicts, and each answer that was graded; `progress`
        hears how many are done."""
        places = asyncio.Semaphore(AT_ONCE)
        found: dict[tuple[str, str], Regraded] = {}
        done = 0

        async def one(group: Group, example: Example, trajectory: Trajectory) -> None:
            nonlocal done
            async with places:
                now = await graded(self.graders, example, whole(group, trajectory))
            said = trajectory.answer or ""
            found[group.id, trajectory.id] = Regraded(
                group.id, group.example, trajectory.id, example.grading, said,
                Standing.of(trajectory), now,
            )  # fmt: skip
            done += 1
            progress(done)

        examples = [replace(Example.of(g), grading=self.grading(g)) for g in groups]
        await together(
            [
                one(group, example, trajectory)
                for group, example in zip(groups, examples, strict=True)
                for trajectory in filter(gradable, group.trajectories())
            ]
        )
        return [self._changed(group, found) for group in groups], list(found.values())

    def _changed(self, group: Group, found: Mapping[tuple[str, str], Regraded]) -> Group:
        """A copy without pictures in which the trajectories have their new verdicts."""

        def changed(trajectory: Trajectory) -> Trajectory:
            at = self.solved or trajectory.solved_at
            again = found.get((group.id, trajectory.id))
            reward = trajectory.reward if again is None else again.now.reward
            return replace(trajectory, reward=reward, solved_at=at)

        branches = [
            Branch(b.source, b.cut, b.confidence, [changed(c) for c in b.continuations])
            for b in group.branches
        ]
        rollouts = [changed(rollout) for rollout in group.rollouts]
        return replace(group, rollouts=rollouts, branches=branches, pictures={})


async def graded(graders: Graders, example: Example, trajectory: Trajectory) -> Standing:
    """What an answer is worth; not scored where its grading fails, as when it was sampled. Raises
    `UserError`: a spent budget, a full disk."""
    try:
        verdict = await graders.grade(example, trajectory)
    except UserError:
        raise
    except Exception as error:
        return Standing(None, "unscored: grading", f"{type(error).__name__}: {error}")
    return Standing(verdict.reward, verdict.rule, verdict.detail)


def gradable(trajectory: Trajectory) -> bool:
    """Whether a grader gave the trajectory its verdict, or should have."""
    by_environment = trajectory.rule.partition(":")[0] == JUDGED_BY
    answered = trajectory.stop is StopReason.ANSWER and trajectory.answer is not None
    return answered and not by_environment


def result(
    before: Sequence[Group], after: Sequence[Group], answers: Sequence[Regraded], k: int, seed: int
) -> dict[str, Any]:
    """What the new verdicts change, as plain JSON: how many answers went from which rule and reward
    to which, the answers whose reward changed, and the figures before and after with what lies
    between them."""
    moves = Counter((_side(one.was), _side(one.now)) for one in answers)
    kept = Counter(
        (str(t.stop), Standing.of(t).rule)
        for group in before
        for t in group.trajectories()
        if not gradable(t)
    )
    values = [
        {n: asdict(e) for n, e in summarize(groups, k, seed).metrics.items() if _counts(n)}
        for groups in (before, after)
    ]
    examples = [group.example for group in before]
    between: dict[str, Any] = {}
    if len(set(examples)) == len(examples):
        found = compare(before, after, k, seed)["difference"]
        between = {name: value for name, value in found.items() if _counts(name)}
    return {
        "questions": len(set(examples)),
        "graded": len(answers),
        "rules": [
            {"was": dict(was), "now": dict(now), "answers": count}
            for (was, now), count in moves.most_common()
        ],
        "kept": [{"stop": s, "rule": r, "rollouts": n} for (s, r), n in kept.most_common()],
        "changed": [asdict(one) for one in answers if one.was.reward != one.now.reward],
        "metrics": {"before": values[0], "after": values[1], "difference": between},
    }


def _side(standing: Standing) -> tuple[tuple[str, Any], ...]:
    return (("rule", standing.rule), ("reward", standing.reward))


def _counts(metric: str) -> bool:
    return metric.startswith(METRICS)
