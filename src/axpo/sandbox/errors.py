"""Whose fault: what the code does wrong is an answer, what the sandbox does wrong this error."""

from __future__ import annotations


class SandboxFault(Exception):
    """The sandbox failed through no fault of the code that runs in it; the message says how."""
