"""Typed settings: sparse TOML recipes plus dotted settings become one checked `Config`.

Nothing here imports torch, so that a wrong key or value is refused in milliseconds, before any
model is loaded. Numbers quote their source where the paper (arXiv 2605.28774) names them;
the others are our choices and are listed in `docs/paper_map.md`.
"""

from axpo.config.base import NonNegativeInt, Part, PositiveInt, Section
from axpo.config.cluster import ClusterSettings
from axpo.config.config import Config, config_class, default_config
from axpo.config.judge import JudgeSettings
from axpo.config.model import LoraSettings, ModelSettings
from axpo.config.reading import (
    apply_settings,
    is_setting,
    load_config,
    parse_config,
    recipes_and_settings,
)
from axpo.config.rollout import (
    LimitSettings,
    McpSettings,
    RolloutSettings,
    SearchSettings,
    ToolsSettings,
)
from axpo.config.training import EvalSettings, OptimizerSettings, RunSettings

__all__ = [
    "ClusterSettings",
    "Config",
    "EvalSettings",
    "JudgeSettings",
    "LimitSettings",
    "LoraSettings",
    "McpSettings",
    "ModelSettings",
    "NonNegativeInt",
    "OptimizerSettings",
    "Part",
    "PositiveInt",
    "RolloutSettings",
    "RunSettings",
    "SearchSettings",
    "Section",
    "ToolsSettings",
    "apply_settings",
    "config_class",
    "default_config",
    "is_setting",
    "load_config",
    "parse_config",
    "recipes_and_settings",
]
