"""The lab on a machine without a sandbox: without the tool `python` and the family that needs
it."""

from __future__ import annotations

import json

from axpo.config import Config
from axpo.tasks.lab.task import LabTask
from axpo.tools.python import NAME as PYTHON

FAMILY = "calculate"
"""The family of questions whose tool is `python`."""


def without_python(config: Config) -> tuple[str, ...]:
    """The two overrides that leave `python` out of a recipe of the lab, with its family.

    Empty for a recipe that does not name the tool, or that would have no questions left.
    """
    if not isinstance(config.task, LabTask) or PYTHON not in config.rollout.tools:
        return ()
    tools = [name for name in config.rollout.tools if name != PYTHON]
    families = [name for name in config.task.families if name != FAMILY]
    if not families:
        return ()
    return (f"task.families={json.dumps(families)}", f"rollout.tools={json.dumps(tools)}")
