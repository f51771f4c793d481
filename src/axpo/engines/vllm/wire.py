"""The JSON of one request to a vLLM server, and the reading of its answer: pure functions.

The route is `/inference/v1/generate`, with token ids in and out. A request names every picture
once, by one placeholder, which the server expands. The expanded tokens are compared with those that
the trainer will compute on: a wrong count would otherwise move pictures silently.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from PIL import Image

from axpo.engines.base import Completion, Finish, Request
from axpo.errors import AnswerFault, EngineError
from axpo.tree import ImageSpan, collapse

BAN = -1e9
"""It is added to the logits of banned ids, which leaves them no probability in float32."""
PART = 2048
"""The tokens after which a server sends a part of an answer: long ones show that they go on."""
UNNAMED = "default"
"""A server's name for the weights that it was started with."""


NONSENSE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError,
            RecursionError)  # fmt: skip
"""The exceptions that are raised when JSON has another shape than its reader expects."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion without versions, and the name of the weights that sampled each token."""

    completion: Completion
    weights: tuple[str, ...]


def picture_url(image: Image.Image) -> str:
    """The picture, lossless, as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def request_body(
    request: Request, id: str, model: str, spans: Sequence[ImageSpan], urls: Sequence[str | None]
) -> dict[str, Any]:
    """The JSON of `request` under the server's own `id`; a picture without a URL (None) is one
    that the server knows by its content hash.

    The server answers in parts and sends the first token as soon as it has it: by then the request
    has left the server's queue, and others may name the pictures that it brought.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "request_id": id,
        "model": model,
        "token_ids": collapse(request.tokens, spans),
        "sampling_params": {
            "n": 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "presence_penalty": sampling.presence_penalty,
            "seed": sampling.seed,
            "logprobs": 0,
            "ignore_eos": True,  # `stop` says what ends a turn; the model's files do not.
            "stop_token_ids": list(sampling.stop),
            "logit_bias": {str(id): BAN for id in sampling.banned},
            "detokenize": False,
            "stream_interval": PART,
        },
        "return_token_ids": True,
        "priority": -request.priority,  # vLLM serves the lowest number first.
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.pictures:
        body["content_parts"] = [
            {"type": "image_url", "url": url, "uuid": picture.digest}
            for picture, url in zip(request.pictures, urls, strict=True)
        ]
    return body


def joined(parts: Sequence[str]) -> dict[str, Any]:
    """An answer that came in `parts`, put together; raises `AnswerFault`."""
    choice: dict[str, Any] = {"token_ids": [], "logprobs": {"content": []}}
    answer: dict[str, Any] = {"choices": [choice]}
    try:
        if parts[-1] != "[DONE]":
            raise AnswerFault(f"an answer that broke off after {len(parts)} parts")
        for part in map(orjson.loads, parts[:-1]):
            if "error" in part:
                raise AnswerFault(f"an answer that failed half-way: {shown(part['error'])}")
            answer |= {name: part[name] for name in ("prompt_token_ids", "usage") if part.get(name)}
            for new in part["choices"]:
                choice["token_ids"] += new["token_ids"]
                choice["logprobs"]["content"] += new["logprobs"]["content"]
                choice["finish_reason"] = new["finish_reason"]
                choice["weight_versions"] = new["weight_versions"]
    except NONSENSE as error:
        raise AnswerFault(f"parts that make no sense ({error!r}): {shown(parts)}") from error
    return answer


def read_answer(request: Request, answer: Any, vocabulary: int) -> Answer:
    """The completion in `answer` (parsed JSON), whose ids must be below `vocabulary`.

    Raises `AnswerFault` for an answer that is cut short or makes no sense, and `EngineError` for
    one which shows that the server computed on other tokens than those of the request.
    """
    try:
        (choice,) = answer["choices"]
        tokens = [_whole(token) for token in choice["token_ids"]]
        scored = choice["logprobs"]["content"]
        scores = [(_whole(entry["token_id"]), float(entry["logprob"])) for entry in scored]
        expanded = [_whole(token) for token in answer["prompt_token_ids"]]
        reason, usage = choice["finish_reason"], answer["usage"]
        spans = choice.get("weight_versions") or []
        reused = _whole((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except NONSENSE as error:
        raise AnswerFault(f"an answer that makes no sense ({error!r}): {shown(answer)}") from error
    if reason == "abort":
        raise AnswerFault(f"the server aborted the request after {len(tokens)} tokens")
    _check_prompt(request, expanded)
    if not 0 <= reused <= len(expanded):
        raise AnswerFault(f"cached_tokens is {reused} of a prompt of {len(expanded)} tokens")
    _check_ids(request, tokens, scores, vocabulary)
    _check_sample(request, tokens, scores, reason)
    try:
        weights = _weights(spans, len(tokens))
    except NONSENSE as error:
        raise AnswerFault(f"weights that make no sense ({error!r}): {shown(spans)}") from error
    finish = Finish.STOP if tokens[-1] in request.sampling.stop else Finish.LENGTH
    logprobs = tuple(logprob for _, logprob in scores)
    completion = Completion(tuple(tokens), logprobs, finish, (), reused)
    return Answer(completion, tuple(weights) or (UNNAMED,) * len(tokens))


def _whole(number: Any) -> int:
    """`number`, which must be an integer; `int` would also accept "7", True and 7.9."""
    if type(number) is not int:
        raise TypeError(f"{number!r:.40} is no integer")
    return number


def _weights(spans: Any, tokens: int) -> list[str]:
    """The name of the weights that sampled each of the `tokens`; empty if none is named."""
    names: list[str] = []
    for span in spans:
        start, end = _whole(span["start"]), _whole(span["end"])
        if start != len(names) or not start < end <= tokens:
            raise ValueError(f"weights named from {start} to {end} after {len(names)} of {tokens}")
        names += [str(span["version"])] * (end - start)
    if names and len(names) != tokens:
        raise ValueError(f"weights of {len(names)} tokens are named, there are {tokens}")
    return names


def _check_ids(
    request: Request, tokens: Sequence[int], scores: Sequence[tuple[int, float]], vocabulary: int
) -> None:
    """Raise `AnswerFault` for ids that the request excludes; the next answer may be right."""
    sampling = request.sampling
    if [token for token, _ in scores] != list(tokens) or not tokens:
        raise AnswerFault(f"{len(scores)} logprobs beside {len(tokens)} tokens that are not theirs")
    if strange := [token for token in tokens if not 0 <= token < vocabulary]:
        raise AnswerFault(f"it sampled the id {strange[0]} of a vocabulary of {vocabulary}")
    if len(tokens) > sampling.max_tokens:
        raise AnswerFault(f"{len(tokens)} tokens, {sampling.max_tokens} were asked for at most")
    if early := [at for at, token in enumerate(tokens[:-1]) if token in sampling.stop]:
        raise AnswerFault(f"it went on after the stop at {early[0]} of {len(tokens)} tokens")


def _check_prompt(request: Request, expanded: Sequence[int]) -> None:
    if tuple(expanded) == request.tokens:
        return
    pairs = enumerate(zip(expanded, request.tokens, strict=False))
    at = next((i for i, (got, asked) in pairs if got != asked), None)
    where = "" if at is None else f", first at {at}: {expanded[at]} for {request.tokens[at]}"
    raise EngineError(
        f"request {request.id}: the server computed on {len(expanded)} tokens, expected "
        f"{len(request.tokens)}{where}; its pixel limits or its tokenizer differ from the trainer's"
    )


def _check_sample(
    request: Request, tokens: Sequence[int], scores: Sequence[tuple[int, float]], reason: str
) -> None:
    sampling = request.sampling
    if banned := set(tokens) & set(sampling.banned):
        raise EngineError(f"request {request.id}: the server sampled banned ids {sorted(banned)}")
    if worst := [logprob for _, logprob in scores if not -1e3 < logprob <= 1e-3]:
        raise EngineError(
            f"request {request.id}: the server's logprobs hold {worst[0]}; its weights have "
            "diverged, or it does not run with --logprobs-mode processed_logprobs"
        )
    if tokens[-1] in sampling.stop or len(tokens) == sampling.max_tokens:
        return
    if reason == "length":
        raise EngineError(
            f"request {request.id}: the server's context ended at {len(request.tokens)} + "
            f"{len(tokens)} tokens, {sampling.max_tokens} were asked for; start it with a larger "
            "--max-model-len"
        )
    raise AnswerFault(f"{len(tokens)} tokens of {sampling.max_tokens}, finished as {reason!r}")


def shown(answer: Any) -> str:
    """The beginning of a server's answer, for a message."""
    try:
        text = repr(answer)
    except RecursionError:
        return f"a {type(answer).__name__}, nested too deeply to be shown"
    return text if len(text) <= 200 else text[:200] + " ..."
