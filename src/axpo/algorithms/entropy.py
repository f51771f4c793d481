"""The entropy of a turn's opening, by which ARPO branches (arXiv 2507.19849 and its open code)."""

from __future__ import annotations

import math
from collections.abc import Sequence

TOP_LOGPROBS = 10
"""The number of a token's highest logprobs over which its entropy is summed."""
OPENING = 20
"""The number of a turn's first tokens whose entropies are summed."""


def opening_entropy(top_logprobs: Sequence[Sequence[float]], vocabulary: int) -> float:
    """-sum p log p over the highest logprobs of each of a turn's first tokens, over log |V|."""
    terms = [math.exp(p) * p for token in top_logprobs[:OPENING] for p in token[:TOP_LOGPROBS]]
    return -math.fsum(terms) / math.log(vocabulary)
