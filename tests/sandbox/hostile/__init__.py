"""The hostile suite as data: what model-written code may try, one list a kind of attack."""

from tests.sandbox.hostile.answers import ANSWERS
from tests.sandbox.hostile.files import FILES
from tests.sandbox.hostile.network import NETWORK
from tests.sandbox.hostile.processes import PROCESSES
from tests.sandbox.hostile.resources import RESOURCES
from tests.sandbox.hostile.snippet import PRELUDE, Snippet

SNIPPETS: list[Snippet] = [*FILES, *NETWORK, *PROCESSES, *RESOURCES, *ANSWERS]

__all__ = ["PRELUDE", "SNIPPETS", "Snippet"]
