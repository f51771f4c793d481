"""What whoever runs a command can put right. Imports nothing, for everything may raise it."""

from __future__ import annotations


class UserError(ValueError):
    """Something that whoever runs a command can put right; the command prints the message alone."""
