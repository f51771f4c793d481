"""What a recipe may say of tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from axpo.build.tools import recipe_tools
from axpo.config import Config, parse_config
from axpo.errors import ConfigError
from axpo.report.settings import settings


@pytest.mark.parametrize(
    ("tools", "error"),
    [
        ({"limit": {}}, "tools.limit: unknown setting; did you mean 'limits'?"),
        (
            {"limits": {"look": {"timout": 3}}},
            "tools.limits.look.timout: unknown setting; did you mean 'timeout'?",
        ),
        (
            {"mcp": [{"comand": ["x"]}]},
            "tools.mcp.0.comand: unknown setting; did you mean 'command'?",
        ),
        ({"limits": {"look": {"retries": -1}}}, "tools.limits.look.retries: "),
        ({"mcp": [{}]}, "tools.mcp.0.command, url: expected one of them"),
        ({"mcp": [{"command": ["x"], "url": "y"}]}, "tools.mcp.0.command, url: expected one"),
        ({"mcp": [{"url": "y", "env": ["Z"]}]}, "tools.mcp.0.env: no effect with url"),
    ],
)
def test_wrong_settings_name_the_key(tools: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        parse_config({"tools": tools})


def test_limits_of_a_tool_that_the_recipe_lacks_are_refused() -> None:
    config = parse_config({"tools": {"limits": {"python": {"timeout": 3}}}})
    with pytest.raises(ConfigError, match=r"tools.limits: limits of 'python': the tools are image"):
        recipe_tools(config)


def test_a_tool_whose_text_would_be_control_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        'from axpo.tools import tool\n\n@tool\ndef peek() -> str:\n    """A <think> of it."""\n'
    )
    (tmp_path / "spelled_tools.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = parse_config({"rollout": {"tools": ["spelled_tools:peek"]}})
    with pytest.raises(ConfigError, match=r"rollout.tools: tool 'peek' has the control .* <think>"):
        recipe_tools(config)


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout.tools: unknown tool 'zoom'; there are image_"):
        recipe_tools(parse_config({"rollout": {"tools": ["zoom"]}}))


OWN = """
from axpo import Section, Tool
from axpo.tools.base import Observation

class Plain(Tool):
    name, timeout, spec = "plain", 1.0, {"type": "function", "function": {"name": "plain"}}
    async def __call__(self, arguments, context):
        return Observation("plain")

class Set(Plain):
    class Settings(Section):
        folder: str
        most: int = 3
        "Results."
    name, spec = "set", {"type": "function", "function": {"name": "set"}}
    def __init__(self, settings):
        self.settings = settings

class Loose(Plain):
    class Settings:
        pass

class Needy(Plain):
    def __init__(self, server):
        pass

plain = Plain()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_tools.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def with_own(names: list[str], **sections: Any) -> Config:
    tools = [f"own_tools:{name}" for name in names]
    return parse_config({"rollout": {"tools": tools}, "tools": {"own": sections}})


@pytest.mark.usefixtures("own")
def test_a_tool_of_one_s_own_has_a_section_of_its_own() -> None:
    config = with_own(["Set", "Plain"], set={"folder": "x"})
    assert config.model_dump(mode="json")["tools"]["own"] == {"set": {"folder": "x", "most": 3}}
    made: Any = recipe_tools(config)["set"]
    assert (made.settings.folder, made.settings.most) == ("x", 3)
    assert type(config) is type(with_own(["Set"], set={"folder": "y"}))
    shown = {setting.name: setting for setting in settings(config)}
    most = shown["tools.own.set.most"]
    assert (most.default, most.changed, most.meaning) == ("3", False, "Results.")
    assert shown["tools.own.set.folder"].changed


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("names", "sections", "error"),
    [
        (["Set"], {}, "tools.own.set.folder: Field required"),
        (["Set"], {"set": {"folder": "x", "mst": 1}},
         "tools.own.set.mst: unknown setting; did you mean 'most'?"),
        (["Set"], {"set": {"folder": "x", "most": "a"}}, "tools.own.set.most: "),
        (["Set"], {"sets": {}}, "tools.own.sets: unknown setting; did you mean 'set'?"),
        (["plain"], {"plain": {"a": 1}}, "tools.own.plain: unknown setting; tools.own has none"),
        (["Loose"], {}, "rollout.tools: 'own_tools:Loose': derive its Settings from axpo.Section"),
        (["Sot"], {}, "own_tools has no 'Sot'; its tools are Plain, Set, Loose, Needy, plain"),
    ],
)  # fmt: skip
def test_wrong_settings_of_one_s_own_tools(
    names: list[str], sections: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        with_own(names, **sections)


@pytest.mark.usefixtures("own")
def test_a_class_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'own_tools:Needy': .*missing 1 required .*'server'"):
        recipe_tools(with_own(["Needy"]))
