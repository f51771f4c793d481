"""`Config`: all settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, create_model, model_validator

from axpo import plugins
from axpo.config.base import Part, Section, taken_away
from axpo.config.cluster import ClusterSettings
from axpo.config.judge import JudgeSettings
from axpo.config.model import ModelSettings
from axpo.config.rollout import (
    RolloutSettings,
    ToolsSettings,
)
from axpo.config.training import (
    EvalSettings,
    RLSettings,
    RunSettings,
    SFTSettings,
)

if TYPE_CHECKING:
    from axpo.algorithms.base import Algorithm
    from axpo.engines.base import EngineSettings
    from axpo.tasks.base import Task
else:  # a part's class is found by its name (`config_class`), so that none is known here
    Algorithm = EngineSettings = Task = Any


def _default(kind: str) -> Any:
    return plugins.find(kind, plugins.default(kind))()


class Config(Section):
    """All settings of a run. Its parts (task, engine, algorithm) are classes by name."""

    model: ModelSettings = ModelSettings()
    task: Task = Field(default_factory=lambda: _default("task"))
    rollout: RolloutSettings = RolloutSettings()
    tools: ToolsSettings = ToolsSettings()
    engine: EngineSettings = Field(default_factory=lambda: _default("engine"))
    algorithm: Algorithm = Field(default_factory=lambda: _default("algorithm"))
    rl: RLSettings = RLSettings()
    sft: SFTSettings = SFTSettings()
    eval: EvalSettings = EvalSettings()
    judge: JudgeSettings | None = None
    """The model that the graders "judge" and "rubric" ask; none by default."""
    run: RunSettings = RunSettings()
    cluster: Annotated[ClusterSettings | None, BeforeValidator(taken_away)] = None
    """Train on many GPUs and machines; by default this process trains alone, and where false stands
    over a recipe's."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.model.lora is not None:
            for name, stage in (("rl", self.rl), ("sft", self.sft)):
                if "freeze_vision" in stage.optimizer.model_fields_set:
                    raise ValueError(
                        f"{name}.optimizer.freeze_vision: no effect with model.lora, which trains "
                        "its adapters alone; remove it (model.lora.vision adapts the vision tower)"
                    )
        if self.rollout.max_turns == 1 and (self.rollout.tools or self.tools.mcp):
            raise ValueError(
                "rollout.max_turns: 1 with tools: the calls of the last turn are not run, so every "
                "rollout that calls one would score 0; set it to 2 or more, or rollout.tools = []"
            )
        if self.rl.questions % self.rl.updates:
            raise ValueError(
                f"rl.updates: {self.rl.updates} does not divide rl.questions = {self.rl.questions}"
            )
        if self.rl.max_staleness and not self.engine.external:
            raise ValueError(
                f"rl.max_staleness: {self.rl.max_staleness} needs an engine that samples while "
                f"this process trains; {self.engine.name!r} samples in it: set engine.name = "
                "'vllm', or 0"
            )
        if not (self.eval.load or self.engine.alone):
            raise ValueError(
                f"eval.load: false needs an engine that samples a model without this process; "
                f"{self.engine.name!r} samples with the weights that are loaded here: set "
                "engine.name = 'vllm', or true"
            )
        if self.cluster is not None and ":" in self.model.device:
            raise ValueError(
                f"model.device: {self.model.device!r} with [cluster], where every rank gets a GPU "
                "of its own: set it to 'cuda'"
            )
        if self.cluster is not None:
            for name, instead in (
                ("servers", "whose cluster.servers is the number"),
                ("port", "where each server takes a free port of its node"),
            ):
                if name in self.engine.model_fields_set:
                    raise ValueError(
                        f"engine.{name}: no effect with [cluster], {instead}; remove it"
                    )
        return self

    @property
    def loads(self) -> bool:
        """Whether an evaluation loads the model's weights. With [cluster] it does only where
        `eval.load` is set."""
        asked = self.cluster is None or "load" in self.eval.model_fields_set
        return self.eval.load and asked and self.engine.trains

    @property
    def at_once(self) -> int:
        """How many sequences run at once in all servers together."""
        started = self.cluster is not None and self.engine.starts_with is not None
        return self.engine.at_once * (self.cluster.servers if self.cluster and started else 1)


@cache
def config_class(**classes: type[Section]) -> type[Config]:
    """`Config` with these classes, by section: its parts, and the tools' where a recipe has its
    own."""
    return create_model("Config", __base__=Config, **_fields(classes))


@cache
def tools_class(**own: type[Section]) -> type[ToolsSettings]:
    """`ToolsSettings` with these sections in `own`, by the tool's name."""
    section = create_model("Own", __base__=Section, **_fields(own))
    return create_model("ToolsSettings", __base__=ToolsSettings, **_fields({"own": section}))


def _fields(classes: Mapping[str, type[Section]]) -> dict[str, Any]:
    """Fields of these classes, which are checked even where a recipe gives nothing."""
    return {
        name: (kind, Field(default_factory=dict, validate_default=True))
        for name, kind in classes.items()
    }


def default_config(config: Config) -> Config:
    """The same parts, and every setting's default; what has none is left out."""
    parts: dict[str, Part] = {kind: getattr(config, kind) for kind in plugins.BUILT_IN}
    usual: dict[str, Any] = {kind: type(part).model_construct() for kind, part in parts.items()}
    own = type(config.tools.own)
    fields: dict[str, Any] = dict(own.model_fields)
    sections = {name: field.annotation.model_construct() for name, field in fields.items()}
    usual["tools"] = type(config.tools).model_construct(own=own.model_construct(**sections))
    return type(config).model_construct(**usual)
