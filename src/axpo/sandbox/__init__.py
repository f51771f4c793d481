"""Python in a sandbox that is proven at every start. Of axpo it uses only `axpo.pictures`.

`sandbox.Sandbox` opens sessions: each is a notebook whose state lasts until it ends. `session` is
one of them, and `server` starts the fork server that makes them. `levels` contains them,
`environment` has the packages that they import, `limits` bounds their resources, `canaries` is the
proof, and `inside` runs in the sandbox.
"""

from axpo.sandbox.levels import LEVELS
from axpo.sandbox.limits import SessionBounds
from axpo.sandbox.sandbox import Sandbox

__all__ = ["LEVELS", "Sandbox", "SessionBounds"]
