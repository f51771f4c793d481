"""axpo's part inside a vLLM server; it runs in the server's own environment and imports no axpo.

It is loaded by `--worker-extension-cls` and is the only file here that imports vllm. It adds

- `axpo`, a weight-transfer backend: an update names files that the trainer has written, or the
  tensors that it broadcasts. If the model has adapters, only these come, and they are never merged
  into the weights below them;
- logprobs before top-k and top-p: vLLM's `processed_logprobs` include temperature and bias, but are
  renormalised over the ids that truncation keeps, while axpo's are not;
- `axpo_facts`, which the trainer compares with its own model before it samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
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
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.transformers_utils.processor import cached_image_processor_from_config
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

PROTOCOL = 4
"""The version of what this file and the trainer's side (`checks`) say to each other."""
ADAPTER = "axpo-adapter"
"""The path (`--lora-modules NAME=PATH`) of the adapter that weight updates bring."""
JOIN_SECONDS = 600.0
"""Seconds within which the trainer and every worker must join, and a broadcast must end."""


@dataclass
class Joining(WeightTransferInitInfo):
    """The address at which the trainer, rank 0, waits for the workers; files need none."""

    host: str
    port: int
    ranks: int
    backend: str


@dataclass
class Update(WeightTransferUpdateInfo):
    """All weights by the checkpoint's names, in files or by a broadcast.

    They are in the safetensors files `paths`, each tensor in one of them, or in `buckets` of
    tensors (name, dtype, shape) that the trainer broadcasts as bytes, one bucket after another.
    With `lora` (rank, alpha) the tensors are an adapter's, by the names of PEFT's files.
    """

    paths: list[str] | None = None
    buckets: list[list[dict[str, Any]]] | None = None
    lora: dict[str, int] | None = None


@dataclass
class Adapter:
    """The matrices A and B as the trainer sent them, by the names of PEFT's files."""

    rank: int
    alpha: int
    tensors: dict[str, torch.Tensor]


_adapter: Adapter | None = None
"""The latest adapter; None until one has come: then the model is as it was loaded."""


class Transfer(WeightTransferEngine[Joining, Update]):
    """Loads weights from files that this process can read, or from the trainer's broadcast."""

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
        if not self._adapts():
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Update) -> None:
        try:
            self._receive(update_info)
        except BaseException:
            self.group = None  # The trainer must not wait for one that receives no more.
            raise

    def _receive(self, update_info: Update) -> None:
        global _adapter
        if update_info.lora is not None:
            tensors = {n: t.cpu() for some in self._coming(update_info) for n, t in some}
            _adapter = Adapter(update_info.lora["rank"], update_info.lora["alpha"], tensors)
            return
        for some in self._coming(update_info):
            self.model.load_weights(some)

    def finish_weight_update(self) -> None:
        if self._adapts():
            return  # vLLM now drops its adapter and asks for it again (`_trained`).
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self.group = None

    def _adapts(self) -> bool:
        return self.vllm_config.lora_config is not None

    def _coming(self, update: Update) -> Iterator[Iterable[tuple[str, torch.Tensor]]]:
        for path in update.paths or ():
            yield _tensors(path)
        for bucket in update.buckets or ():
            yield _received(self.group, bucket, self.device)


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
    # They are copied, because a part may begin where tensors of its dtype must not begin.
    return [
        (tensor["name"], part.clone().view(dtype).view(tensor["shape"]))
        for tensor, dtype, part in zip(bucket, dtypes, whole.split(sizes), strict=True)
    ]


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            yield name, file.get_tensor(name)


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Renew the packed copies of tied weights that matrix products on a CPU use; the reload renews
    only the embedding's."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _trained(load: Callable[..., LoRAModel]) -> Callable[..., LoRAModel]:
    """A `WorkerLoRAManager._load_adapter` that takes axpo's adapter from memory."""

    def wrapped(self: WorkerLoRAManager, request: Any) -> LoRAModel:
        if request.lora_path != ADAPTER:
            return load(self, request)
        if _adapter is None:
            manager = self._adapter_manager  # It makes an adapter whose A and B are 0.
            return manager.create_dummy_lora(request.lora_int_id, 1, self.embedding_modules)
        # They are copied, because vLLM multiplies B by the scale in place.
        tensors = {name: tensor.clone() for name, tensor in _adapter.tensors.items()}
        helper = PEFTHelper(r=_adapter.rank, lora_alpha=_adapter.alpha, target_modules=[])
        return LoRAModel.from_lora_tensors(
            request.lora_int_id,
            tensors,
            helper,
            device="cpu",
            dtype=self.lora_config.lora_dtype,
            weights_mapper=_renaming(self),
        )

    return wrapped


def _renaming(manager: WorkerLoRAManager) -> Any:
    """The mapper from a checkpoint's names to vLLM's."""
    return manager._adapter_manager.model.hf_to_vllm_mapper.get_rename_mapper()


def _before_truncation(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A `TopKTopPSampler.forward_*` whose logprobs are those before `k` and `p` are applied."""

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
    """A mixin of vLLM's worker; its methods are called by `/collective_rpc`."""

    def axpo_facts(self) -> dict[str, Any]:
        """Facts about the model that this worker serves."""
        settings = self.vllm_config  # type: ignore[attr-defined]
        model = settings.model_config
        pixels = None
        if model.is_multimodal_model:
            given = model.get_multimodal_config().mm_processor_kwargs or {}
            pixels = dict(cached_image_processor_from_config(model).size) | given.get("size", {})
        return {
            "protocol": PROTOCOL,
            "config": model.hf_config.to_dict(),
            "vocabulary": _digest(cached_tokenizer_from_config(model).get_vocab()),
            "pixels": pixels,
            "dtype": str(model.dtype).removeprefix("torch."),
            "head_dtype": str(model.head_dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "logprobs_mode": model.logprobs_mode,
            "scheduling": settings.scheduler_config.policy,
            "max_num_seqs": settings.scheduler_config.max_num_seqs,
            "chunked_prefill": settings.scheduler_config.enable_chunked_prefill,
            "device": current_platform.device_type,
            "lora_rank": settings.lora_config.max_lora_rank if settings.lora_config else 0,
        }

    def axpo_unadapted(self, names: str) -> list[str]:
        """The layers among the checkpoint's `names` (JSON) that this worker does not adapt."""
        manager = self.model_runner.lora_manager  # type: ignore[attr-defined]
        adapted = set(manager._adapter_manager.modules)
        adapted.update(*manager._adapter_manager.packed_modules.values())
        mapper = _renaming(manager)

        def here(name: str) -> str:
            return parse_fine_tuned_lora_name(f"base_model.model.{name}.lora_A.weight", mapper)[0]

        return [name for name in json.loads(names) if here(name) not in adapted]

    def axpo_file_sizes(self, *paths: str) -> list[int]:
        """The size in bytes of each file as this worker sees it; -1 if it does not see it."""
        return [Path(path).stat().st_size if Path(path).is_file() else -1 for path in paths]


if "axpo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("axpo", Transfer)
    WorkerLoRAManager._load_adapter = _trained(WorkerLoRAManager._load_adapter)
    for name in ("forward_native", "forward_cpu"):
        setattr(TopKTopPSampler, name, _before_truncation(getattr(TopKTopPSampler, name)))
