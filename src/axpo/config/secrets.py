"""Settings as they may be written down: what looks like a secret is masked.

A run's settings go into its folder and into reports, which are made to be shown around. Secrets
belong into the environment (`tools.mcp.env`, TAVILY_API_KEY); what is written into a recipe all the
same is masked wherever settings leave the process.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

MASK = "***"
_OPTION = re.compile(
    r"(--?[\w-]*(?:key|token|secret|password|passwd|auth)[\w-]*)(=.*)?", re.I | re.S
)
_HEADER = re.compile(r"((?:authorization|[\w-]*(?:key|token))\s*:).*", re.I | re.S)


def masked(values: Any) -> Any:
    """Plain JSON `values` with masked secrets: user and query of addresses, and arguments named
    or preceded by an option like `--api-key` or `--token`."""
    if isinstance(values, str):
        return masked_text(values)
    if isinstance(values, Mapping):
        named = cast("Mapping[str, Any]", values)
        return {key: masked(value) for key, value in named.items()}
    if isinstance(values, Sequence):
        return masked_arguments(cast("Sequence[Any]", values))
    return values


def masked_arguments(arguments: Sequence[Any]) -> list[Any]:
    """A command's arguments with masked secrets."""
    found: list[Any] = []
    awaited = False
    for argument in arguments:
        if awaited and isinstance(argument, str) and not argument.startswith("-"):
            found.append(MASK)
            awaited = False
            continue
        option = _OPTION.fullmatch(argument) if isinstance(argument, str) else None
        awaited = option is not None and option[2] is None
        if option is not None and option[2] is not None:
            found.append(f"{option[1]}={MASK}")
        else:
            found.append(masked(argument))
    return found


def masked_override(argument: str) -> str:
    """An argument of a command line, `section.key=value` among them, with masked secrets."""
    key, equals, text = argument.partition("=")
    if not equals:
        return masked_text(argument)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return f"{key}={masked_text(text)}"
    shown = masked(value)
    return argument if shown == value else f"{key}={json.dumps(shown)}"


def masked_text(text: str) -> str:
    """An address without user and query, a header without its value; any other text as it is."""
    if header := _HEADER.fullmatch(text):
        return f"{header[1]} {MASK}"
    if "://" not in text:
        return text
    try:
        parts = urlsplit(text)
        user, at, host = parts.netloc.rpartition("@")
    except ValueError:  # an address that cannot be read
        return text
    netloc = f"{MASK}@{host}" if at else parts.netloc
    query = MASK if parts.query else ""
    return urlunsplit(parts._replace(netloc=netloc, query=query)) if user or query else text
