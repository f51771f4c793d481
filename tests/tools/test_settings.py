"""What a recipe may say of tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from axpo.build.tools import recipe_tools
from axpo.config import parse_config
from axpo.errors import ConfigError


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
