"""The hostile suite as data: what model-written code may try, one list a kind of attack."""

from hostile.answers import ANSWERS
from hostile.files import FILES
from hostile.network import NETWORK
from hostile.processes import PROCESSES
from hostile.resources import RESOURCES
from hostile.snippet import PRELUDE, Snippet

SNIPPETS: list[Snippet] = [*FILES, *NETWORK, *PROCESSES, *RESOURCES, *ANSWERS]

__all__ = ["PRELUDE", "SNIPPETS", "Snippet"]
