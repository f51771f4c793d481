"""The contract of every engine: token ids and pictures in, sampled ids and logprobs out.

A request carries its whole path so far. An engine keeps what it computed for earlier requests of
the same `group` and computes only what is new: the prompt and its pictures once per group, a turn's
observation on top of the turn before, a continuation from its cut. What it keeps is a cache:
dropping it changes the time, never the results. `tests/support/engine_contract.py` holds the tests
that each engine must pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from axpo.config.base import Part, PositiveInt
from axpo.engines.stats import EngineStats
from axpo.errors import EngineError, RequestError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from axpo.engines.vllm.process import Place
    from axpo.models.card import Card
    from axpo.models.loading import Checkpoint, Processor


class Finish(StrEnum):
    """Why sampling ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB picture with its content hash (`axpo.pictures.picture_digest`)."""

    digest: str
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request is sampled.

    `seed` fixes this request's draws, whatever else runs beside it (in bfloat16 logits round
    differently in a batch of another shape, so that a draw may give another token). `banned` ids
    get probability 0 before the softmax (vision placeholders); `stop` ids end sampling and are
    returned as the last token. `presence_penalty` is subtracted once, before the temperature, from
    the logits of ids that this request has sampled already. RL needs temperature 1, top_p 1, top_k
    0 and no penalty. `top_logprobs` asks for that many of the highest logprobs at every token.
    """

    max_tokens: int
    seed: int
    stop: tuple[int, ...]
    banned: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; at least 1 is needed")
        if self.temperature < 0:
            raise RequestError(f"temperature is {self.temperature}; 0 is greedy, below is invalid")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; expected 0 < top_p <= 1")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; 0 turns it off, below is invalid")
        if not -2 <= self.presence_penalty <= 2:
            raise RequestError(f"presence_penalty is {self.presence_penalty}; expected -2 to 2")
        if self.top_logprobs < 0:
            raise RequestError(f"top_logprobs is {self.top_logprobs}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Request:
    """A request to sample after `tokens` (with expanded placeholders).

    `pictures` are in the order of their placeholders. The waiting request of the highest `priority`
    gets the next place; among equals, the first.
    """

    id: str
    group: str
    tokens: tuple[int, ...]
    pictures: tuple[Picture, ...]
    sampling: Sampling
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled.

    `logprobs[i]` is the log-probability (nats) of `tokens[i]` under the distribution that sampled
    it, with ban, penalty and temperature but before top-p/top-k truncation; all are empty if the
    engine knows none, and cannot train. `top_logprobs[i]` are the highest of that distribution in
    falling order (fewer if fewer ids may be sampled); it is empty unless asked for. `versions[i]`
    is the version of the weights that sampled `tokens[i]`. Versions never fall, and differ only if
    weights were loaded during sampling. `reused` counts path tokens that were not computed again.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    versions: tuple[int, ...]
    reused: int = 0
    top_logprobs: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Servers:
    """The memory that an engine outside this process takes on the card.

    It runs `count` servers, called `what`, of `share` bytes each. In a server's share, `weights`
    bytes hold its part of the model, and a token of KV cache takes `token` bytes.
    """

    what: str
    count: int
    share: int
    weights: int
    token: int

    @property
    def taken(self) -> int:
        """The bytes of the card that all servers take together."""
        return self.count * self.share

    @property
    def room(self) -> int:
        """The most tokens of KV cache that one server can hold. Its activations and CUDA graphs,
        some GB for a real model, come out of the same share."""
        return max(0, self.share - self.weights) // self.token


@dataclass(frozen=True, slots=True)
class Start:
    """What an engine is started with: the model, whose weights are version 0, and the run's limits.

    `processor` is that of the checkpoint at `model.path`, and `dtype` is `model.dtype`.
    `checkpoint` is the loaded model; None if this process loads none, which only engines that are
    `alone` meet.
    `folder` is for logs and weights, and a path may hold `room` tokens after its prompt. `shared`
    is a folder for weights which machines of a cluster all see, and `servers` makes the engine's
    servers on them; None without a cluster.
    `in_flight` says what happens to requests in flight when new weights come (`rl.in_flight`); None
    means that there are none then.
    """

    processor: Processor
    checkpoint: Checkpoint | None
    folder: Path
    room: int
    dtype: str
    in_flight: Literal["keep", "restart", "finish"] | None = None
    shared: Path | None = None
    servers: Place | None = None


class EngineSettings(Part):
    """The settings of an engine, which also describe the engine before it runs and start it.

    `axpo.config` loads the class with the recipe, so heavy imports belong in `start`.
    """

    kind: ClassVar[str] = "engine"
    external: ClassVar[bool] = False
    """Whether the engine samples outside this process. Then it is compared with the model before it
    is used and after each update, and may sample while this process trains."""
    alone: ClassVar[bool] = False
    """Whether it can sample a model whose weights this process does not load (`eval.load`)."""
    trains: ClassVar[bool] = True
    """Whether training can use it. If not, it serves a model of its own: it gets no weights, and
    evaluations load none."""

    slots: PositiveInt = 256
    """How many sequences are kept or run at once (in each server, if there are several); in this
    process these are KV slots. Further requests wait, and later turns go before first turns."""

    @property
    def at_once(self) -> int:
        """How many sequences run at once in all servers together."""
        return self.slots

    @property
    def longest_path(self) -> int | None:
        """How many tokens a path may have, its prompt included (the setting `max_length`); None
        if the engine has no limit of its own."""
        return None

    @property
    def max_difference(self) -> float | None:
        """The mean difference (nats) of its logprobs from the trainer's above which the engine is
        refused (the setting `max_logprob_difference`); None for the usual one."""
        return None

    @property
    def starting(self) -> str:
        """A description of what `start` does."""
        return "starting the engine"

    @property
    def starts_with(self) -> str | None:
        """The python of the environment whose servers it starts; None if it starts none."""
        return None

    @property
    def measured(self) -> Mapping[str, Any]:
        """What an evaluation's outcome depends on beside `model.path`, in plain JSON values: where
        the engine serves another model, its name as "model" and what else changes its answers."""
        return {}

    def missing(self) -> str | None:
        """What the engine needs and this machine lacks, and how to get it; None if nothing."""
        return None

    def check(self, shapes: Any, dtype: str, device: str) -> None:
        """Raise `ConfigError`, before any weights are loaded, if the engine cannot serve a model
        of the config `shapes` (transformers) in `dtype`, which is trained on `device`."""

    def taken(self, model: Any, dtype: str, card: Card, device: str) -> Servers | None:
        """What the engine takes of the `card` of `device` beside this process; None if nothing.

        `model` needs shapes only. Raises `ConfigError` if its share is too small for itself.
        """
        return None

    def start(self, start: Start) -> Engine:
        """Start the engine, which may take a while; raises `UserError` if it does not start."""
        raise NotImplementedError(f"{type(self).__name__} has no start()")


Buckets = Sequence[Sequence[Mapping[str, Any]]]
"""The name, dtype and shape of the tensors in each bucket of a broadcast, as JSON has them."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes of a broadcast meet: a store (`torch.distributed.TCPStore`) at `host` and
    `port`. They are `ranks` in number: the one that sends, then a server's workers. `backend` is
    "nccl" or "gloo"."""

    host: str
    port: int
    ranks: int
    backend: str


@dataclass(frozen=True, slots=True)
class Handed:
    """Weights that a `Source` has handed over.

    They are in the files `paths`, each of which holds some of the tensors; without any, only the
    source has them. `served_share` is as in `Engine`. `broken` gives the reason for each of the
    groups that got not all of what was sent.
    """

    paths: tuple[Path, ...]
    served_share: float | None
    broken: Mapping[str, str] = field(default_factory=dict)


class Source(ABC):
    """Weights that one process holds, or several ranks together, of which none has them all.

    Only what servers get is handed over: all weights under the model's own names, tied ones once,
    in the dtype in which the model computes; of a model with adapters, their matrices under PEFT's
    names. The methods block, so they are called in threads, but never two at once. On ranks, each
    has a source of its own (`axpo.training.publishing`) which is told to do the same; all of them
    return the same, and an error on one is raised on all.
    """

    @abstractmethod
    def write(self, folder: Path, name: str) -> Handed:
        """Write safetensors files `weights-{name}-*` into `folder`, each whole or not at all.

        All ranks write at the same time, each its share of the tensors.
        """

    @abstractmethod
    def groups(self) -> list[str]:
        """The names of the groups that were joined and have not broken."""

    @abstractmethod
    def join(self, group: str, meeting: Meeting) -> None:
        """Let the process that sends form a group, called `group`, with a server's workers."""

    @abstractmethod
    def send(self, groups: Sequence[str], buckets: Buckets, folder: Path, name: str) -> Handed:
        """Broadcast all weights, one of `buckets` after another, to each of `groups`.

        The buckets tell the name, dtype and shape of each tensor; all ranks walk through them in
        step. Ranks also write what `write` does, but in the background: a lost server gets the
        files when it comes back, because the ranks may be busy then and have newer weights. One
        process writes none; it sends the same again.
        """


class Engine(ABC):
    """A running engine. A request is cancelled by cancelling the task that awaits it."""

    stats: EngineStats
    version: int = 0
    """The version of the weights that sample now; `load_weights` sets it."""
    served_share: float | None = None
    """The share, from 0 to 1, of training's changes that the weights carry which were published
    last; None if they are the trainer's own."""

    @property
    def figures(self) -> Mapping[str, float]:
        """Counts and sums since the start that tell what sampling costs, as metrics; always of the
        same names, and none where it costs nothing."""
        return {}

    @property
    def gauges(self) -> Mapping[str, float]:
        """How its servers are now, as metrics; none where it has no servers."""
        return {}

    async def serves(self) -> str | None:
        """The name of the model as those who serve it tell it; None if the settings say which.

        Raises `UserError` or `EngineError` where it cannot be used.
        """
        return None

    @abstractmethod
    async def generate(self, request: Request) -> Completion:
        """Sample one completion; raises `RequestError` or `EngineError`.

        The time until sampling begins counts as `waiting` (`axpo.clock`).
        """

    async def probe(self, request: Request) -> Mapping[str, Completion]:
        """The answer to `request` of each server that is up, by its name; it is not counted."""
        return {type(self).__name__: await self.generate(request)}

    @abstractmethod
    async def release(self, group: str) -> None:
        """Forget everything that is kept for `group`."""

    @abstractmethod
    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Sample with these weights from the next request on, and drop everything that is kept."""

    async def load_from(self, source: Source, version: int) -> None:
        """`load_weights` for weights that several processes may hold together.

        Raises `EngineError` if this engine cannot take them, and the errors of `source`; then the
        weights are those from before.
        """
        raise EngineError(
            f"weights {version}: {type(self).__name__} cannot take weights that are spread over "
            'processes; set engine.name to "vllm"'
        )

    @abstractmethod
    async def close(self) -> None:
        """Stop; pending requests raise `EngineError`."""
