"""What axpo adds inside a vLLM server; runs in the server's own environment and knows no axpo.

Loaded by `--worker-extension-cls`; the only file here that imports vllm. It owns

- `axpo`, a weight-transfer backend: an update names a file that the trainer has written, or what it
  broadcasts;
- logprobs before top-k and top-p: vLLM's `processed_logprobs` have temperature and bias in them,
  but are renormalised over what truncation keeps, and axpo's are not;
- `axpo_facts`, what the trainer compares with its own model before it samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import distributed
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.transformers_utils.processor import cached_image_processor_from_config
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

PROTOCOL = 3
"""Raised when this file and the trainer's side of it change together."""
JOIN_SECONDS = 600.0
"""The trainer and every worker must have joined, and a broadcast be through, by then."""


@dataclass
class Joining(WeightTransferInitInfo):
    """Where the trainer, rank 0, waits for this server's workers; not needed for files."""

    host: str
    port: int
    ranks: int
    backend: str


@dataclass
class Update(WeightTransferUpdateInfo):
    """Every weight by the checkpoint's names: the `path` of a safetensors file, or `buckets` of
    tensors (name, dtype, shape) that the trainer broadcasts as bytes, one after another."""

    path: str | None = None
    buckets: list[list[dict[str, Any]]] | None = None


class Transfer(WeightTransferEngine[Joining, Update]):
    """Loads weights from a file that this process can read, or from the trainer's broadcast."""

    init_info_cls = Joining
    update_info_cls = Update
    group: Any = None

    def init_transfer_engine(self, init_info: Joining) -> None:
        limit = timedelta(seconds=JOIN_SECONDS)
        store = distributed.TCPStore(
            init_info.host, init_info.port, init_info.ranks, is_master=False, timeout=limit
        )
        made = {"nccl": "ProcessGroupNCCL", "gloo": "ProcessGroupGloo"}[init_info.backend]
        rank = 1 + self.parallel_config.rank
        self.group = getattr(distributed, made)(store, rank, init_info.ranks, limit)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Update) -> None:
        if update_info.path is not None:
            self.model.load_weights(_tensors(update_info.path))
        for bucket in update_info.buckets or ():
            self.model.load_weights(_received(self.group, bucket, self.device))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self.group = None


def _received(
    group: Any, bucket: list[dict[str, Any]], device: torch.device
) -> list[tuple[str, torch.Tensor]]:
    dtypes = [getattr(torch, tensor["dtype"]) for tensor in bucket]
    sizes = [
        math.prod(tensor["shape"]) * dtype.itemsize
        for tensor, dtype in zip(bucket, dtypes, strict=True)
    ]
    whole = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    group.broadcast(whole, 0).wait()
    # A copy each: bytes in the middle of a bucket need not lie where their dtype may begin.
    return [
        (tensor["name"], part.clone().view(dtype).view(tensor["shape"]))
        for tensor, dtype, part in zip(bucket, dtypes, whole.split(sizes), strict=True)
    ]


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            yield name, file.get_tensor(name)


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """A CPU's matrix product holds a packed copy of its weight; of a tied one, the reload renews
    only the embedding's."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _before_truncation(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`TopKTopPSampler.forward_*` whose returned logprobs are those before `k` and `p` apply."""

    def wrapped(
        self: TopKTopPSampler,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if (k is None and p is None) or self.logprobs_mode != "processed_logprobs":
            return forward(self, logits, generators, k, p)
        whole = logits.log_softmax(dim=-1, dtype=torch.float32)
        return forward(self, logits, generators, k, p)[0], whole

    return wrapped


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Extension:
    """Mixed into vLLM's worker; its methods are called by `/collective_rpc`."""

    def axpo_facts(self) -> dict[str, Any]:
        """What this worker serves."""
        settings = self.vllm_config  # type: ignore[attr-defined]
        model = settings.model_config
        processor = cached_image_processor_from_config(model)
        given = model.get_multimodal_config().mm_processor_kwargs or {}
        return {
            "protocol": PROTOCOL,
            "config": model.hf_config.to_dict(),
            "vocabulary": _digest(cached_tokenizer_from_config(model).get_vocab()),
            "pixels": dict(processor.size) | given.get("size", {}),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "logprobs_mode": model.logprobs_mode,
            "scheduling": settings.scheduler_config.policy,
            "max_num_seqs": settings.scheduler_config.max_num_seqs,
            "chunked_prefill": settings.scheduler_config.enable_chunked_prefill,
            "device": current_platform.device_type,
        }

    def axpo_file_size(self, path: str) -> list[int]:
        """Bytes of a file as this worker sees it; -1 where it does not."""
        return [Path(path).stat().st_size if Path(path).is_file() else -1]


if "axpo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("axpo", Transfer)
    for name in ("forward_native", "forward_cpu"):
        setattr(TopKTopPSampler, name, _before_truncation(getattr(TopKTopPSampler, name)))
