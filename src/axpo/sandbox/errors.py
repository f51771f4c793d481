"""The sandbox's own fault; a mistake of the code that runs in it is an answer, not an error."""

from __future__ import annotations


class SandboxFault(Exception):
    """The sandbox failed through no fault of the code that runs in it; the message says how."""
