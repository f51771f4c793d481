"""From settings to tools; every name is checked. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from axpo.build.code import own_sources
from axpo.chat.control import FAMILY
from axpo.config import Config, McpSettings, Part, ToolsSettings
from axpo.errors import ConfigError, GradingError, MissingError, UserError
from axpo.extras import require
from axpo.folder import files_digest
from axpo.tasks.grading import check_grader
from axpo.tasks.lab import CORPUS, GALLERY
from axpo.tools import make_tools
from axpo.tools.base import Tool
from axpo.tools.toolbox import Toolbox


def recipe_tools(config: Config) -> Toolbox:
    """The recipe's tools, those of its MCP servers after them, with their limits.

    Asks the servers what they have; raises `ConfigError` that names the setting.
    """
    try:
        settings = _with_lab_indexes(config.tools)
        tools = make_tools(config.rollout.tools, settings, config.rollout.max_seconds)
    except MissingError as error:
        raise MissingError(f"rollout.tools: {error}") from error
    except ValueError as error:
        raise ConfigError(f"rollout.tools: {error}") from error
    for name, tool in tools.items():
        _check_spec(tool, "rollout.tools", f"tool {name!r}")
    for place, server in enumerate(config.tools.mcp):
        for tool in _server_tools(server, f"tools.mcp.{place}"):
            _check_spec(tool, f"tools.mcp.{place}", f"tool {tool.name!r} of {server.address}")
            if tool.name in tools:
                raise ConfigError(
                    f"tools.mcp.{place}.prefix: there is a tool {tool.name!r} already; set a prefix"
                )
            tools[tool.name] = tool
    try:
        return Toolbox(tools, config.tools.limits)
    except ValueError as error:
        raise ConfigError(f"tools.limits: {error}") from error


def _with_lab_indexes(settings: ToolsSettings) -> ToolsSettings:
    """The settings with "lab" replaced by the shipped files."""
    search = settings.search
    shipped = {"corpus": CORPUS, "gallery": GALLERY}
    found = {name: str(path) for name, path in shipped.items() if getattr(search, name) == "lab"}
    return settings.model_copy(update={"search": search.model_copy(update=found)})


def run_files(config: Config, split: str, *parts: Part) -> dict[str, str]:
    """What a run on a task's `split` depends on beside the settings and the rows, name -> digest:
    indexes that its tools search, the judge's prompts, and the sources of what is one's own of
    tools, graders, task, environment and these further `parts`, with the modules that they import
    of the same folder."""
    search, judge = _with_lab_indexes(config.tools).search, config.judge
    files = {"corpus": search.corpus, "gallery": search.gallery}
    if judge is not None:
        files |= {"judge.prompt": judge.prompt, "judge.rubric": judge.rubric}
    found = {f"{kind} {Path(file).name}": Path(file) for kind, file in files.items() if file}
    named = [*config.rollout.tools, *recipe_graders(config, split)]
    modules = [name.partition(":")[0] for name in named if ":" in name]
    modules += [type(part).__module__ for part in (config.task, *parts) if ":" in part.name]
    if (environment := config.task.environment) is not None:
        modules.append(environment.__module__)
    found |= own_sources(modules)
    return {name: files_digest([file]) for name, file in found.items() if file.is_file()}


def rl_files(config: Config) -> dict[str, str]:
    """What RL depends on beside the settings and the rows, name -> digest."""
    files = run_files(config, "train", config.algorithm, config.engine)
    return files | (run_files(config, config.eval.validation) if config.eval.every else {})


def recipe_graders(config: Config, split: str) -> set[str]:
    """The graders of the task's split; raises `ConfigError` for one that is not there."""
    found = config.task.graders(split)
    for name in found:
        try:
            check_grader(name)
        except GradingError as error:
            raise ConfigError(f"task.name: {config.task.name!r}: grading: {error}") from error
    return found


def _check_spec(tool: Tool, key: str, what: str) -> None:
    """Refuse a tool whose name, description or schema would be control tokens in the prompt."""
    if (spelled := FAMILY.spelled(tool.spec)) is not None:
        raise ConfigError(
            f"{key}: {what} has the control token {spelled} in its description or schema, which "
            "would change what the prompt says; leave this tool out or change its text"
        )


def _server_tools(settings: McpSettings, key: str) -> Sequence[Tool]:
    require("mcp", key)
    from axpo.tools.mcp import server_tools

    try:
        return server_tools(settings)
    except UserError as error:
        raise ConfigError(f"{key}: {error}") from error
