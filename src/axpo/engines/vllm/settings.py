"""The settings of vLLM servers, which also describe the servers before they run."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from axpo.config.base import NonNegativeInt, PositiveFloat, PositiveInt
from axpo.engines.base import Engine, EngineSettings, Servers, Start
from axpo.errors import ConfigError

if TYPE_CHECKING:
    from axpo.models.card import Card

VLLM_ENVIRONMENT = (
    "`python -m axpo.engines.vllm.environment .venv-vllm` builds vLLM's environment for a CPU; "
    "on a GPU, pip install vllm in one of its own"
)
"""This is said wherever `python` is missing or lacks vLLM."""
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""The environment variable with the GiB of KV cache of a server on a CPU; 1 unless it is set."""


class Vllm(EngineSettings):
    """vLLM servers: started with `python`, or running at `urls`."""

    external: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    python: str | None = None
    """The python of vLLM's own environment, with which servers are started (docs/vllm.md)."""
    servers: PositiveInt = 1
    """How many servers are started."""
    port: NonNegativeInt = 0
    """The port of the first server that is started; the others get the next ones. 0 takes free
    ports."""
    max_length: PositiveInt = 8192
    """How many tokens of a path, its prompt included, a started server takes."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the servers that are started, such as "--tensor-parallel-size=2"."""
    start_seconds: PositiveFloat = 600.0
    """How many seconds a server may take to start, or to come back after it was lost."""
    urls: tuple[str, ...] = ()
    """Addresses of running servers, as `axpo serve` prints them."""
    folder: str | None = None
    """Folder for weights that the servers at `urls` can read; a temporary one by default."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights get to the servers: by a file that both see, or from GPU to GPU."""
    request_seconds: PositiveFloat = 900.0
    """How many seconds a server may take for 2,048 tokens of a request that it has begun before it
    counts as hung. A server also counts as hung if it gives nothing of any request for so long."""
    health_seconds: PositiveFloat = 10.0
    """How many seconds a busy server may take to say that it is well."""
    max_logprob_difference: PositiveFloat | None = None
    """Training is refused if the mean difference (nats) of a server's logprobs from the trainer's
    is larger. The default depends on dtype and number of tokens (choice; docs/vllm.md)."""

    @model_validator(mode="after")
    def _one_source(self) -> Vllm:
        if bool(self.python) == bool(self.urls):
            raise ValueError(
                "python, urls: expected one of them, python to start servers or urls of running "
                f"ones ({VLLM_ENVIRONMENT})"
            )
        started = {"servers", "port", "max_length", "arguments"} & self.model_fields_set
        if self.urls and started:
            raise ValueError(f"{', '.join(sorted(started))}: no effect with urls; remove it")
        if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ValueError(f"urls: got {wrong[0]!r}, expected one such as http://127.0.0.1:8000")
        if self.python and self.folder is not None:
            raise ValueError("folder: no effect with python; remove it")
        if self.transfer == "nccl" and self.folder is not None:
            raise ValueError("folder: no effect with transfer = 'nccl'; remove it")
        return self

    @property
    def at_once(self) -> int:
        """The slots of all servers."""
        return self.slots * (len(self.urls) or self.servers)

    @property
    def starts_with(self) -> str | None:
        """The setting `python`."""
        return self.python

    @property
    def longest_path(self) -> int | None:
        """The limit of a started server; a running one is asked when it is first used."""
        return None if self.python is None else self.max_length

    @property
    def max_difference(self) -> float | None:
        """The setting `max_logprob_difference`."""
        return self.max_logprob_difference

    @property
    def starting(self) -> str:
        """A sentence that says how many servers are started."""
        if self.python is None:
            return super().starting
        return f"starting {self.servers} vLLM server{'s' if self.servers > 1 else ''}"

    def missing(self) -> str | None:
        """Why vLLM's own environment is missing; None if it is there."""
        if self.python is None or shutil.which(self.python) is not None:
            return None
        return (
            f"engine.python: there is no program {self.python}; {VLLM_ENVIRONMENT} "
            "(docs/vllm.md); engine.name=transformers samples in this process"
        )

    def check(self, shapes: Any, dtype: str, device: str) -> None:
        """Refuse a vLLM that cannot serve the model, and transfer from GPU to GPU without a GPU."""
        from axpo.engines.vllm.server import fitting_installation

        if self.python is not None:
            fitting_installation(self, shapes, dtype)
        if self.transfer == "nccl" and device == "cpu":
            raise ConfigError(
                "engine.transfer: 'nccl' goes from GPU to GPU, this process trains on a CPU: set "
                "it to 'file', or model.device to 'cuda' where there is one"
            )

    def taken(self, model: Any, dtype: str, card: Card, device: str) -> Servers | None:
        """The share of the servers that are started."""
        from axpo.engines.vllm.share import started_servers

        return started_servers(self, model, dtype, card, device)

    def start(self, start: Start) -> Engine:
        """Start servers, or use the running ones."""
        from axpo.engines.vllm.serving import start_engine

        return start_engine(self, start)
