"""The `axpo` command: how it starts and ends. The commands themselves are in `commands`, which is
imported once signals are listened to."""

from __future__ import annotations

import os
import signal
import sys
import warnings

from axpo.errors import RunWarning, Stopped, UserError
from axpo.stopping import let_go, listen


def main() -> None:
    """Run the command. A wrong setting, a full disk or a stop ends with a line, not a traceback."""
    listen()
    warnings.formatwarning = _format_warning
    try:
        from axpo.cli.commands import app

        app()
    except UserError as error:
        sys.exit(f"axpo: {error}")
    except Stopped as stop:
        _end(stop)
    finally:
        let_go()  # what is still to be printed may be cut off


def _end(stop: Stopped) -> None:
    """Say where it stopped; exit with 128 and the signal's number, as shells report it."""
    if stop.number == getattr(signal, "SIGPIPE", None):
        let_go()
        os.kill(os.getpid(), stop.number)
    print(f"axpo: {stop}", file=sys.stderr)
    sys.exit(stop.code)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    line: str | None = None,
) -> str:  # fmt: skip
    """Our own warnings are for whoever runs the command, not about a line of code."""
    if issubclass(category, RunWarning):
        return f"axpo: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"
