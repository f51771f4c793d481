"""M-RoPE positions of a run of tokens (transformers' `get_rope_index` of the Qwen families).

Text counts up by one on all three axes. A picture's tokens spread over (t, h, w) from the current
position; what follows continues after the larger of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from axpo.tree import ImageSpan

Grid = tuple[int, int, int]


def rope_positions(
    length: int, spans: Iterable[tuple[ImageSpan, Grid]], start: int, merge_size: int
) -> tuple[torch.Tensor, int]:
    """The positions [3, length] from position `start` on, and the position that follows them.

    `spans` are the run's pictures in order, each with its patch grid (t, h, w) and wholly within
    the run.
    """
    pieces: list[torch.Tensor] = []
    done, position = 0, start

    def text(until: int) -> None:
        nonlocal done, position
        count = until - done
        pieces.append(torch.arange(position, position + count).expand(3, -1))
        done, position = until, position + count

    for span, (t, h, w) in spans:
        text(span.start)
        rows, columns = h // merge_size, w // merge_size
        if t * rows * columns != span.length:
            raise ValueError(
                f"picture {span.digest} has {span.length} placeholder tokens, but its grid "
                f"{(t, h, w)} needs {t * rows * columns}: was it resized differently?"
            )
        axes = torch.meshgrid(
            torch.arange(t), torch.arange(rows), torch.arange(columns), indexing="ij"
        )
        pieces.append(torch.stack(axes).reshape(3, -1) + position)
        done += span.length
        position += max(rows, columns)
    text(length)
    return torch.cat(pieces, dim=1), position
