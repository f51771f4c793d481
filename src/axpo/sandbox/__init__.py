"""Python in a sandbox that is proven at every start. It knows of axpo only how a picture is shown.

`sandbox.Sandbox` opens sessions: each is a notebook whose state lasts until it ends. `session` is
one of them and `server` the fork server that makes them; `levels` contains them, `environment` has
the packages that they import, `limits` bounds their resources, `canaries` is the proof, and
`inside` runs on the other side.
"""

from axpo.sandbox.levels import LEVELS
from axpo.sandbox.limits import SessionBounds
from axpo.sandbox.sandbox import Sandbox

__all__ = ["LEVELS", "Sandbox", "SessionBounds"]
