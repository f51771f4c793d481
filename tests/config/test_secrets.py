"""Secrets of a recipe stay out of what a run writes down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axpo.checks import check_folder, note_settings
from axpo.config import McpSettings, parse_config
from axpo.config.secrets import masked, masked_text
from axpo.errors import ConfigError
from axpo.evaluation.identity import outcome_settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["srv", "--api-key", "sk-1", "x"], ["srv", "--api-key", "***", "x"]),
        (["srv", "--api-key=sk-1", "--port=8"], ["srv", "--api-key=***", "--port=8"]),
        (["srv", "--token", "--verbose", "x"], ["srv", "--token", "--verbose", "x"]),
        (["-H", "Authorization: Bearer abc"], ["-H", "Authorization: ***"]),
        (["env", "--client_secret", "a b"], ["env", "--client_secret", "***"]),
        (["--max-model-len=64", "--dtype", "half"], ["--max-model-len=64", "--dtype", "half"]),
    ],
)
def test_arguments(given: list[str], expected: list[str]) -> None:
    assert masked(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://user:pw@h:1/a?token=t#f", "https://***@h:1/a?***#f"),
        ("http://127.0.0.1:9/mcp", "http://127.0.0.1:9/mcp"),
        ("data/{split}.jsonl", "data/{split}.jsonl"),
        ("http://[bad", "http://[bad"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert masked_text(given) == expected


def test_nothing_of_a_secret_is_written_and_a_run_goes_on(tmp_path: Path) -> None:
    def config(secret: str):
        servers = [
            {"command": ["srv", "--api-key", secret]},
            {"url": f"https://u:{secret}@h/?token={secret}", "prefix": "b_"},
        ]
        return parse_config({"tools": {"mcp": servers}})

    note_settings(tmp_path, config("sk-first"))
    (tmp_path / "metrics.jsonl").write_text("{}\n")  # a run that has begun
    assert "sk-first" not in (tmp_path / "config.json").read_text()
    assert "sk-first" not in json.dumps(
        outcome_settings(config("sk-first").model_dump(mode="json"), ("tools",))
    )
    check_folder(tmp_path, config("sk-rotated"), ("train",))
    other = parse_config({"tools": {"mcp": [{"command": ["other"]}]}})
    with pytest.raises(ConfigError, match=r"tools\.mcp"):
        check_folder(tmp_path, other, ("train",))


def test_messages_name_a_server_without_its_secrets() -> None:
    assert McpSettings(command=("srv", "--token=t")).address == "srv --token=***"
    assert McpSettings(url="http://u:p@h/").address == "http://***@h/"
