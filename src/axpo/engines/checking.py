"""The checks that every engine does before it computes anything for a request.

A wrong number of placeholders would otherwise shift pictures silently, and an id outside the
vocabulary would fail deep in an embedding; here both errors name the request.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

from axpo.engines.base import Picture, Request
from axpo.errors import RequestError
from axpo.tree import ImageSpan

if TYPE_CHECKING:
    from axpo.models.loading import Processor


def check_request(request: Request, processor: Processor) -> tuple[ImageSpan, ...]:
    """The spans of the request's pictures, in order.

    Raises `RequestError` if the model of `processor` cannot serve the request.
    """
    check_tokens(request, processor.vocabulary)

    def length(picture: Picture) -> int:
        try:
            return processor.picture_tokens(picture.image)
        except ValueError as error:
            raise RequestError(f"request {request.id}: picture {picture.digest}: {error}") from None

    return image_spans(request, processor.image_token, length)


def check_tokens(request: Request, vocabulary: int) -> None:
    """Raise `RequestError` unless there are tokens, all ids exist, and one may be sampled."""
    if not request.tokens:
        raise RequestError(f"request {request.id}: no tokens to sample after")
    for name, ids in (("tokens", request.tokens), ("banned", request.sampling.banned)):
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            wrong = next(i for i in ids if not 0 <= i < vocabulary)
            raise RequestError(
                f"request {request.id}: {name} hold id {wrong}, "
                f"outside the vocabulary of {vocabulary}"
            )
    if len(set(request.sampling.banned)) >= vocabulary:
        raise RequestError(f"request {request.id}: nothing to sample, every id is banned")


def image_spans(
    request: Request, image_token: int, length: Callable[[Picture], int]
) -> tuple[ImageSpan, ...]:
    """The span of each picture's placeholders in `request.tokens`, in order.

    `length` returns the number of placeholder tokens that a picture takes. Raises `RequestError`,
    with got and expected, if runs of `image_token` and pictures do not correspond.
    """
    runs: list[tuple[int, int]] = []
    if image_token in request.tokens:
        start = 0
        for token, run in groupby(request.tokens):
            size = sum(1 for _ in run)
            if token == image_token:
                runs.append((start, size))
            start += size
    if len(runs) != len(request.pictures):
        raise RequestError(
            f"request {request.id}: got {len(runs)} runs of image placeholders (id {image_token}), "
            f"expected {len(request.pictures)}, one per picture"
        )
    spans: list[ImageSpan] = []
    for i, ((start, size), picture) in enumerate(zip(runs, request.pictures, strict=True)):
        expected = length(picture)
        if size != expected:
            raise RequestError(
                f"request {request.id}: picture {i} ({picture.digest}) has {size} placeholder "
                f"tokens at {start}, expected {expected} for its {picture.image.size} pixels"
            )
        spans.append(ImageSpan(picture.digest, start, size))
    return tuple(spans)
