"""Samples the steps' questions in order, some of them ahead of training.

The batch of `step` is trained from weights of version `step`. Its sampling may start once the
engine has version `step - max_staleness`, so no token is older than that when it is trained. With 0
it starts when the step before is over, and every token is the policy's own. B questions are sampled
at once; a question of the next batch takes the place of one that is done, so that an engine which
may sample ahead never waits for a batch's slowest rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from axpo.algorithms.base import Plan
from axpo.algorithms.unscored import check_scored
from axpo.config import Config
from axpo.rollout.agent import Agent
from axpo.rollout.branching import sample_question
from axpo.rollout.sampling import new_group, resample, together
from axpo.tasks.base import Task
from axpo.training.data import training_example
from axpo.tree import Group


class Collector:
    """Samples the batches of a run's steps. It is an async context manager.

    Leaving the context cancels what is still being sampled.
    """

    def __init__(self, agent: Agent, task: Task, config: Config) -> None:
        self._agent = agent
        self._task = task
        self._config = config
        self._places = asyncio.Semaphore(config.rl.questions)
        self._beside = ThreadPoolExecutor(max_workers=1)
        self._prepared: dict[int, Future[list[Group]]] = {}
        self._sampling: dict[int, asyncio.Task[list[Group]]] = {}

    async def __aenter__(self) -> Collector:
        return self

    async def __aexit__(self, *_: object) -> None:
        for batch in self._sampling.values():
            batch.cancel()
        await asyncio.gather(*self._sampling.values(), return_exceptions=True)
        self._beside.shutdown(cancel_futures=True)

    async def take(self, step: int, watch: Callable[[str], None]) -> list[Group]:
        """The batch of `step`, sampled and scored; the engine must have the weights of `step`.

        This also starts the batches that the new weights allow. `watch` is told the phases; if
        batches are sampled ahead, only that this one is awaited.
        """
        ahead = self._config.rl.max_staleness
        watch("sample")
        for due in range(step, min(step + ahead + 1, self._config.rl.steps)):
            if due not in self._sampling:
                phases = (lambda _: None) if ahead else watch
                self._sampling[due] = asyncio.create_task(self._batch(due, phases))
        groups = await self._sampling[step]
        del self._sampling[step]
        return groups

    def prepare(self, step: int) -> None:
        """Render, after `step` has started, the questions of the batch that will start next.

        This runs in a thread during the update, which spends its time in torch; sampling also
        spends time in Python.
        """
        due = step + self._config.rl.max_staleness
        if due < self._config.rl.steps and due not in self._prepared:
            self._prepared[due] = self._beside.submit(self.new_groups, due)

    def new_groups(self, step: int) -> list[Group]:
        """The step's B questions as groups with rendered prompts, for which nothing is sampled yet.

        Their pictures are preprocessed for an engine in this process.
        """
        first, seed = step * self._config.rl.questions, self._config.run.seed
        rendering, groups = self._agent.rendering, list[Group]()
        for place in range(self._config.rl.questions):
            example = training_example(self._task, "train", first + place, seed)
            groups.append(new_group(rendering, example, f"s{step}/q{place}"))
            if not self._config.engine.external:
                rendering.preprocess(groups[-1].pictures)
        return groups

    async def _batch(self, step: int, watch: Callable[[str], None]) -> list[Group]:
        prepared = self._prepared.pop(step, None) or self._beside.submit(self.new_groups, step)
        groups = await asyncio.wrap_future(prepared)
        await self.sample(groups, watch)
        return groups

    async def sample(self, groups: Sequence[Group], watch: Callable[[str], None]) -> None:
        """Sample N rollouts of each question, and the continuations of the batch's branches.

        The budget ranks prefixes across the questions of the batch. A branch that it reaches
        however the unfinished questions turn out (`plan`'s `pending`) grows at once, beside their
        rollouts; only branches that depend on them wait. In the end the same branches grow.
        """
        algorithm, seed = self._config.algorithm, self._config.run.seed
        done: dict[str, Group] = {}
        started: set[str] = set()

        async def one(group: Group) -> None:
            async with self._places:
                await sample_question(self._agent, group, algorithm, seed, self._task)
            done[group.id] = group
            watch("plan")
            pending = len(groups) - len(done)
            plans = algorithm.plan(list(done.values()), seed, pending)
            new = [plan for plan in plans if plan.source not in started]
            started.update(plan.source for plan in new)
            watch("sample" if pending else "resample")
            await together([self._grow(done[plan.group], plan) for plan in new])

        watch("sample")
        await together([one(group) for group in groups])
        check_scored(groups, self._config.run)
        for group in groups:
            order = [trajectory.id for trajectory in group.trajectories()]
            group.branches.sort(key=lambda branch: order.index(branch.source))

    async def _grow(self, group: Group, plan: Plan) -> None:
        """Cut the plan's source and sample its continuations."""
        branch = group.fork(group.trajectory(plan.source), plan.cut, plan.confidence)
        await resample(self._agent, group, branch, plan.continuations, self._config.run.seed)
