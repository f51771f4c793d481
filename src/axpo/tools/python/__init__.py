"""Python for agents: a notebook a trajectory in a sandbox that is proven at every start.

`tool` is what an agent calls; `session` is one trajectory's notebook, `server` the fork server
that makes them, `levels` what contains them, `environment` what they may import, `canaries` the
proof, and `inside` what runs on the other side.
"""

from axpo.tools.python.levels import LEVELS
from axpo.tools.python.limits import Bounds
from axpo.tools.python.tool import PythonTool

__all__ = ["LEVELS", "Bounds", "PythonTool"]
