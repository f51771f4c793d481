"""What settings of a chat endpoint must fulfil, the judge's and an engine's."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_endpoint(
    named: str, urls: Sequence[str], key: str | None, timeout: float, deadline: float
) -> None:
    """Raise `ValueError` for an address in the setting `named` or a key's name that is none, and
    for a deadline before the end of one request."""
    if not all(url.startswith(("http://", "https://")) for url in urls):
        raise ValueError(f"{named}: expected an address that begins with http:// or https://")
    if key is not None and not _NAME.fullmatch(key):  # it may be the key itself
        raise ValueError(
            "key: expected the name of an environment variable, such as OPENAI_API_KEY, which "
            "holds the key"
        )
    if deadline < timeout:
        raise ValueError(
            f"deadline: {deadline:g} s are less than the {timeout:g} s of one request (timeout); "
            "raise it or lower timeout"
        )
