"""Settings of what samples: in this process, or vLLM servers."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from axpo.config.base import NonNegativeInt, PositiveFloat, PositiveInt, Section

VLLM_ENVIRONMENT = (
    "`python -m axpo.engines.vllm.environment .venv-vllm` builds vLLM's environment for a CPU; "
    "on a GPU, pip install vllm in one of its own"
)
"""Said wherever `python` is missing or lacks vLLM."""


class VllmSettings(Section):
    """vLLM servers: started with `python`, or running at `urls`."""

    python: str | None = None
    """The python of vLLM's own environment, which servers are started with (docs/vllm.md)."""
    servers: PositiveInt = 1
    """Servers that are started."""
    port: NonNegativeInt = 0
    """Port of the first server that is started, the others' follow; 0 takes free ones."""
    max_length: PositiveInt = 8192
    """Tokens of a path, its prompt included, that a started server takes."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the servers that are started, such as "--tensor-parallel-size=2"."""
    start_seconds: PositiveFloat = 600.0
    """Seconds that a server may take to start, or to come back after it was lost."""
    urls: tuple[str, ...] = ()
    """Addresses of running servers, as `axpo serve` prints them."""
    folder: str | None = None
    """Folder for weights that the servers at `urls` can read; a temporary one by default."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights get to the servers: by a file that both see, or from GPU to GPU."""
    request_seconds: PositiveFloat = 900.0
    """Seconds that a server may take over one request, once it has begun it, before it counts as
    hung; so does one in which requests wait, and that begins and ends none for so long."""
    health_seconds: PositiveFloat = 10.0
    """Seconds that a busy server may take to say that it is well."""
    max_logprob_difference: PositiveFloat | None = None
    """Training is refused where the mean difference (nats) of a server's logprobs from the
    trainer's is larger; by dtype and number of tokens unless it is set (choice; docs/vllm.md)."""

    @model_validator(mode="after")
    def _one_source(self) -> VllmSettings:
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


class EngineSettings(Section):
    name: Literal["transformers", "vllm"] = "transformers"
    """Where tokens are sampled: "transformers" in this process, "vllm" in servers beside it."""
    slots: PositiveInt = 256
    """Sequences kept or running at once, in each server; with "transformers" these are KV slots.
    Further requests wait, and later turns go before first turns."""
    max_prefill_tokens: PositiveInt = 4096
    """Padded tokens of one prefill call ("transformers")."""
    vllm: VllmSettings | None = None
    """Servers of the "vllm" engine."""

    @model_validator(mode="after")
    def _effective(self) -> EngineSettings:
        if self.name == "vllm" and self.vllm is None:
            raise ValueError("vllm: needed by name = 'vllm'; add [engine.vllm] with python or urls")
        if self.name == "vllm" and "max_prefill_tokens" in self.model_fields_set:
            raise ValueError("max_prefill_tokens: no effect with name = 'vllm'; remove it")
        if self.name != "vllm" and self.vllm is not None:
            raise ValueError(f"vllm: no effect with name = {self.name!r}; set name = 'vllm'")
        return self
