"""What each command runs with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from axpo import stopping
from axpo.build.judge import recipe_judge, start_judge
from axpo.build.learners import gang_learner, join_cluster, local_learner, shared_folder
from axpo.build.models import load_alone, load_policy, load_reference, load_trained
from axpo.build.preflight import check_policy_sampling, check_sampling, preflight
from axpo.build.tools import recipe_tools, rl_files, run_files
from axpo.config import Config
from axpo.engines.base import Engine, Start
from axpo.errors import ConfigError
from axpo.evaluation import validation
from axpo.evaluation.run import Loaded, Measurement
from axpo.folder import RunFolder
from axpo.judge import Judge
from axpo.models.loading import Checkpoint, Processor
from axpo.models.paths import model_path
from axpo.rollout.agent import Agent
from axpo.rollout.episodes import episodes
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Critic
from axpo.tasks.grading import Graders
from axpo.tools.base import Tool
from axpo.training import rl, sft
from axpo.training.parity import limits_of
from axpo.training.probe import WeightProbe
from axpo.training.validation import Validation

if TYPE_CHECKING:
    from axpo.cluster.start import Joined
    from axpo.engines.vllm.process import Place

Say = Callable[[str], None]
"""Hears what is being done, where that takes a while."""
CHECKING = "checking settings and data"
LOADING = "loading the model"


def rl_run(config: Config, out: Path | None = None, say: Say = lambda _: None) -> rl.RLRun:
    """RL of `model.path`, with KL also its reference.

    `out` is the run's folder, a temporary one by default. Raises `UserError` for what is wrong,
    most of it before any weights are loaded.
    """
    say(CHECKING)
    if not config.engine.trains:
        raise ConfigError(
            f"engine.name: {config.engine.name!r} serves a model of its own, which cannot be "
            "trained here; set it to 'vllm' or 'transformers'"
        )
    check_policy_sampling(config.rollout)
    task, tools = config.task, recipe_tools(config)
    task.check()
    if config.algorithm.needs_critic and not isinstance(task, Critic):
        raise ConfigError(
            f"algorithm.name: {config.algorithm.name!r} needs critiques; the {task.name} task "
            "offers none"
        )
    splits = ("train", config.eval.validation) if config.eval.every else ("train",)
    judge = recipe_judge(config, *splits)
    path = model_path(config.model.path)
    preflight(config, "rl", path, task, tools)
    out = Path(tempfile.mkdtemp(prefix="axpo-")) if out is None else out
    with ExitStack() as undo:
        joined = join_cluster(config, out, path, "ranks", *_server_places(config))
        if joined is not None:
            undo.callback(joined.leave)
        say(LOADING)
        checkpoint = load_policy(config, path, hollow=joined is not None)
        reference = load_reference(config, path) if joined is None else None
        agent = build_agent(config, checkpoint, tools, judge, out, say, joined)
        if joined is None:
            learner = local_learner(config, "rl", checkpoint, reference, agent.engine)
        else:
            undo.callback(lambda: stopping.run(agent.close()))
            learner = gang_learner(config, "rl", path, joined, agent.engine, say)
        undo.pop_all()
    temperature = config.rollout.temperature
    probe = None
    if config.engine.external:
        probe = WeightProbe(
            agent.engine, agent.rendering, learner.logprobs, temperature, limits_of(config)
        )
    files = rl_files(config)
    measure = partial(validation.measure, agent, config)
    evaluations = Validation(config, RunFolder(out), validation.made_with(config), measure)
    return rl.RLRun(config, out, task, agent, learner, files, evaluations, probe)


def sft_run(config: Config, out: Path, say: Say = lambda _: None) -> sft.SFTRun:
    """SFT of `model.path` in the run's folder `out`; raises `UserError`."""
    say(CHECKING)
    path, task, tools = model_path(config.model.path), config.task, recipe_tools(config)
    task.check()
    preflight(config, "sft", path, task, tools)
    joined = join_cluster(config, out, path, "ranks")
    say(LOADING)
    checkpoint = load_policy(config, path, hollow=joined is not None)
    rendering = Rendering(checkpoint.processor, tools, task.system)
    if joined is None:
        learner = local_learner(config, "sft", checkpoint, None, None)
    else:
        learner = gang_learner(config, "sft", path, joined, None, say)
    return sft.SFTRun(config, out, task, rendering, learner, run_files(config, "sft"))


def evaluation_run(config: Config, out: Path) -> Measurement:
    """What `axpo eval` and `axpo diagnose` measure `model.path` with; loads it when they sample."""
    path = model_path(config.model.path)
    config.task.check()

    def load(say: Say) -> Loaded:
        say(CHECKING)
        tools = recipe_tools(config)
        judge = recipe_judge(config, config.eval.split)
        model, agent, leave = measuring(config, path, tools, judge, out, say)
        return Loaded(agent, model if isinstance(model, Checkpoint) else None, leave)

    files = run_files(config, config.eval.split)
    return Measurement(config, out, path, files, load)


def measuring(
    config: Config,
    path: str,
    tools: Mapping[str, Tool],
    judge: Judge | None,
    out: Path,
    say: Say,
) -> tuple[Checkpoint | Processor, Agent, Callable[[], object]]:
    """What measures the model at `path`: that (`measured_model`), an agent, and what leaves the
    cluster on which its servers run, at the end. Raises `UserError`."""
    joined = None
    if places := _server_places(config):
        joined = join_cluster(config, out, path, *places)
    leave = (lambda: None) if joined is None else joined.leave
    try:
        model = measured_model(config, path, say)
        return model, build_agent(config, model, tools, judge, out, say, joined), leave
    except BaseException:
        leave()
        raise


def measured_model(config: Config, path: str, say: Say) -> Checkpoint | Processor:
    """The checkpoint at `path` to be measured, or its processor alone where the engine has the
    weights; raises `UserError`."""
    check_sampling(config, path)
    if not config.loads:
        return load_alone(config, path)
    say(LOADING)
    return load_trained(config, path)


def build_agent(
    config: Config,
    model: Checkpoint | Processor,
    tools: Mapping[str, Tool],
    judge: Judge | None,
    out: Path,
    say: Say = lambda _: None,
    joined: Joined | None = None,
) -> Agent:
    """An agent that samples with the weights of a checkpoint, or, of a processor alone, with those
    that the engine serves; the logs of engine and judge go to `out`. Servers are started on the
    cluster that was `joined`.

    Starting them may take a while; raises `UserError` where one does not start.
    """
    checkpoint = model if isinstance(model, Checkpoint) else None
    processor = model.processor if isinstance(model, Checkpoint) else model
    rendering = Rendering(processor, tools, config.task.system)
    in_flight = config.rl.in_flight if config.rl.max_staleness else None
    start = Start(
        processor, checkpoint, RunFolder(out).vllm, config.rollout.max_tokens, config.model.dtype,
        in_flight, *_on_cluster(config, joined, out, say),
    )  # fmt: skip
    graders = Graders(judge)
    server = None if judge is None else start_judge(config, judge, start.folder, say)
    say(config.engine.starting)
    try:
        engine = config.engine.start(start)
    except BaseException:
        if server is not None:
            server.stop()
        raise
    return agent_with(config, engine, rendering, graders)


def _server_places(config: Config) -> tuple[str, ...]:
    """The places that the engine's servers need in a cluster, as `join_cluster` is told."""
    return ("servers",) if config.engine.starts_with is not None else ()


def _on_cluster(
    config: Config, joined: Joined | None, out: Path, say: Say
) -> tuple[Path | None, Place | None]:
    """The folder for weights and the place of servers in a cluster; None twice without one."""
    if joined is None or config.cluster is None:
        return None, None
    from axpo.cluster.servers import placing

    place = placing(joined.servers, config.cluster.start_seconds, say)
    return shared_folder(config, out) / "weights", place


def agent_with(config: Config, engine: Engine, rendering: Rendering, graders: Graders) -> Agent:
    """An agent for the recipe with a running engine and the tools of the rendering."""
    return Agent(
        engine, rendering, rendering.tools, config.rollout, graders.grade,
        config.algorithm.top_logprobs, config.task.solved, episodes(config.task, rendering),
        graders,
    )  # fmt: skip
