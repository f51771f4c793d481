"""Compares a vLLM server with the trainer, or with the processor alone, before it samples.

Each of these differences would otherwise show as slightly wrong logprobs, or not at all. Here each
is refused with the value found, the value expected, and the remedy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from axpo.config import LoraSettings
from axpo.engines.vllm.client import GENERATE, Client
from axpo.engines.vllm.wire import UNNAMED
from axpo.engines.weights import placeholders
from axpo.errors import AnswerFault, ConfigError, EngineError, Refused, ServerLost
from axpo.models.head import head_dtype
from axpo.models.loading import Checkpoint, Processor
from axpo.models.lora import adapted_names, adapter_settings
from axpo.models.vision import seen_limits

PROTOCOL = 4
"""The version of `axpo.engines.vllm.worker` that this side speaks."""
ADAPTER = "axpo-adapter"
"""The name, and for vLLM the path, of the adapter that a server gets by weight updates."""
TESTED = "0.32.0"
"""The version of vLLM that the tests run against."""
ROUTES = {
    GENERATE: "--enable-scale-out",
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1 in its environment",
    "/update_weights": "VLLM_SERVER_DEV_MODE=1 in its environment",
    "/pause": "VLLM_SERVER_DEV_MODE=1 in its environment",
}
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""The sizes of attention heads for which vLLM has kernels on a CPU (`CPUAttentionBackend`)."""
WEIGHTS = "/weight_info"
"""The route that names the weights; servers that take none may lack it."""
WORDS = 256
"""The number of a vocabulary's words of which the text is made that compares tokenizers."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks of adapters that vLLM makes room for (`MaxLoRARanks`)."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model without its weights: `tensors` is its state dict on the meta device, `lora` the
    settings of the adapters in it, None if it has none."""

    processor: Processor
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    head_dtype: torch.dtype
    lora: LoraSettings | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TrainedModel:
        """The description of the model of `checkpoint`."""
        model = checkpoint.model
        return cls(
            checkpoint.processor,
            placeholders(model),
            model.dtype,
            head_dtype(model),
            adapter_settings(model),
        )


@dataclass(frozen=True, slots=True)
class Served:
    """The name under which a server serves the `model` with its adapter, the number of requests
    that it gets at once, and the name of the weights that it samples with.

    Of a model of its own, `root` is where the server has it from, and `context` the number of
    tokens that a path may have.
    """

    model: str
    places: int
    weights: str
    root: str = ""
    context: int = 2**31


async def check_server(client: Client, trained: TrainedModel, room: int) -> Served:
    """Check that the server serves the model that is `trained`.

    Paths hold more than `room` tokens. Raises `ConfigError` if it serves another model, or not as
    training needs it.
    """
    try:
        routes = await client.routes()
        for route, switch in ROUTES.items():
            if route not in routes:
                raise ConfigError(f"{client.url} has no {route}: start it with {switch}")
        try:
            facts = (await client.rpc("axpo_facts"))[0]
        except AnswerFault as error:
            raise ConfigError(
                f"{client.url} runs without axpo's worker extension ({error}): start it with "
                "`axpo serve`, or with --worker-extension-cls as docs/vllm.md says"
            ) from error
        found = differences(facts, expected_facts(trained), trained.processor.family.served)
        models = list(await client.models())
        if facts.get("protocol") != PROTOCOL:
            pass  # It is refused; another version may give the other facts other names.
        elif trained.lora is not None:
            layers, rank = adapted_names(trained.tensors), trained.lora.rank
            vision = list(filter(trained.processor.family.in_vision, layers))
            found += await _unadapted(client, layers, vision, rank, facts["lora_rank"], models)
        elif facts["lora_rank"]:
            found.append(
                "it serves adapters, nothing here has any (start it without --enable-lora)"
            )
        if facts["max_model_len"] <= room:
            found.append(
                f"its context is {facts['max_model_len']} tokens, rollouts may need more than "
                f"{room} (start it with a larger --max-model-len, or lower rollout.max_tokens)"
            )
        if found:
            version = await client.version()
            raise ConfigError(
                f"{client.url} (vLLM {version}, tested with {TESTED}) does not serve what is "
                f"trained: {'; '.join(found)}"
            )
        name = ADAPTER if trained.lora else models[0]
        return Served(name, facts["max_num_seqs"], await client.weights())
    except (ServerLost, AnswerFault, Refused) as error:
        raise EngineError(f"{client.url}: {error}") from error


async def check_alone(client: Client, processor: Processor, room: int, places: int) -> Served:
    """Check that a server, of whatever model, takes and gives the ids of `processor`.

    It gets `places` requests at once, and paths hold more than `room` tokens. Raises `ConfigError`.
    """
    try:
        routes = await client.routes()
        if GENERATE not in routes:
            raise ConfigError(f"{client.url} has no {GENERATE}: start it with {ROUTES[GENERATE]}")
        name, root = next(iter((await client.models()).items()))
        text, expected = _probe_text(processor)
        ids, context = await client.tokenize(text)
        if ids != expected:
            pairs = enumerate(zip(ids, expected, strict=False))
            at = next((i for i, (got, ours) in pairs if got != ours), min(len(ids), len(expected)))
            raise ConfigError(
                f"{client.url} serves {name!r} with another vocabulary than {processor.path}: its "
                f"tokenizer gives {ids[at : at + 3]} at {at} of a text, expected "
                f"{expected[at : at + 3]}; name a model of its family as model.path"
            )
        if context <= room:
            raise ConfigError(
                f"{client.url} has a context of {context} tokens, rollouts may need more than "
                f"{room} (start it with a larger --max-model-len, or lower rollout.max_tokens)"
            )
        weights = await client.weights() if WEIGHTS in routes else UNNAMED
        return Served(name, places, weights, root, context)
    except (ServerLost, AnswerFault, Refused) as error:
        raise EngineError(f"{client.url}: {error}") from error


def _probe_text(processor: Processor) -> tuple[str, list[int]]:
    """Words from all over the vocabulary with the special ones among them, and their ids."""
    tokenizer: Any = processor.tokenizer
    every = max(1, tokenizer.vocab_size // WORDS)
    words = [tokenizer.decode([id]) for id in range(0, tokenizer.vocab_size, every)]
    text = " ".join([*words, *tokenizer.get_added_vocab()])
    return text, tokenizer.encode(text, add_special_tokens=False)


async def _unadapted(
    client: Client,
    layers: list[str],
    vision: list[str],
    needed: int,
    rank: int,
    models: list[str],
) -> list[str]:
    """What prevents a server that takes adapters of `rank` (0: none) from serving those of `layers`
    with the rank `needed`; `vision` are those of the vision part."""
    if not rank:
        return [
            "it takes no adapters (start it with `axpo serve` of this recipe, or with "
            f"{' '.join(lora_arguments(needed, bool(vision)))})"
        ]
    if rank < needed:
        return [
            f"it takes adapters of rank {rank} at most, model.lora.rank is {needed} (start it with "
            f"--max-lora-rank {server_rank(needed)})"
        ]
    if ADAPTER not in models:
        return [f"it does not know the adapter (start it with --lora-modules {ADAPTER}={ADAPTER})"]
    # Each worker of a pipeline has some of the layers; a layer is missing if none has it.
    answers = await client.rpc("axpo_unadapted", json.dumps(layers))
    missing = sorted(set(layers).intersection(*answers))
    if not missing:
        return []
    advice = "without --lora-target-modules"
    if set(missing) <= set(vision):
        advice = "with --enable-tower-connector-lora, or train without model.lora.vision"
    return [
        f"it adapts no {missing[0]} ({len(missing)} of {len(layers)} adapted layers; start it "
        f"{advice})"
    ]


def server_rank(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds `rank`; raises `ConfigError`."""
    if rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"model.lora.rank: got {rank}, vLLM serves adapters up to rank {LORA_RANKS[-1]}: lower "
            "it, or sample with engine.name = 'transformers'"
        )
    return next(room for room in LORA_RANKS if room >= rank)


def lora_arguments(rank: int, vision: bool) -> list[str]:
    """The arguments of a server that takes adapters of `rank`; with `vision` also those of the
    vision part."""
    return [
        "--enable-lora", "--max-loras", "1", "--max-lora-rank", str(server_rank(rank)),
        "--lora-modules", f"{ADAPTER}={ADAPTER}",
        *(["--enable-tower-connector-lora"] if vision else []),
    ]  # fmt: skip


def expected_facts(trained: TrainedModel) -> dict[str, Any]:
    """The facts that `Extension.axpo_facts` should return on a server of the `trained` model."""
    processor = trained.processor
    words = json.dumps(processor.tokenizer.get_vocab(), sort_keys=True)
    return {
        "protocol": PROTOCOL,
        "config": processor.config.to_dict(),
        "vocabulary": hashlib.sha256(words.encode()).hexdigest()[:16],
        "pixels": seen_limits(processor.image_processor) if processor.family.sees else None,
        "dtype": dtype_name(trained.dtype),
        "head_dtype": dtype_name(trained.head_dtype),
        "logprobs_mode": "processed_logprobs",
        "scheduling": "priority",
    }


def dtype_name(dtype: torch.dtype) -> str:
    """The name of `dtype` as vLLM's arguments spell it."""
    return str(dtype).removeprefix("torch.")


def differences(
    facts: Mapping[str, Any],
    expected: Mapping[str, Any],
    served: Iterable[tuple[str | None, tuple[str, ...]]],
) -> list[str]:
    """Each difference with its name, the value found, the value expected, and the remedy; `served`
    are the values of the model's config that must be equal (`Family.served`)."""
    advice = {
        "protocol": "start it with this version of axpo",
        "vocabulary": "give it the trainer's tokenizer",
        "pixels": "serve the same model"
        if expected["pixels"] is None
        else "pictures come at the trainer's size and must keep it: start it with "
        f"--mm-processor-kwargs '{json.dumps({'size': expected['pixels']})}'",
        "dtype": f"start it with --dtype {expected['dtype']}",
        "head_dtype": "the trainer's output layer keeps its logits so: start it with "
        f"--hf-overrides '{json.dumps({'head_dtype': expected['head_dtype']})}'",
        "logprobs_mode": "start it with --logprobs-mode processed_logprobs",
        "scheduling": "later turns go before first turns: start it with --scheduling-policy "
        "priority",
    }
    found = [
        f"{name} is {facts.get(name)!r}, expected {expected[name]!r} ({text})"
        for name, text in advice.items()
        if facts.get(name) != expected[name]
    ]
    theirs, ours = facts["config"], expected["config"]
    for section, names in served:
        got, want = (theirs[section], ours[section]) if section else (theirs, ours)
        found += [
            f"{section or 'config'}.{name} is {got.get(name)!r}, expected {want.get(name)!r}"
            for name in names
            if got.get(name) != want.get(name)
        ]
    if facts["device"] != "cpu":
        return found
    if facts["chunked_prefill"]:
        found.append(
            "chunked prefill is on, with which seeded requests kill vLLM on a CPU "
            "(start it with --no-enable-chunked-prefill)"
        )
    text = theirs.get("text_config", theirs)
    heads = text["hidden_size"] // text["num_attention_heads"]
    if refused := refused_heads(text.get("head_dim") or heads):
        found.append(refused)
    return found


def refused_heads(size: int) -> str | None:
    """Why vLLM on a CPU cannot serve attention heads of `size`; None if it can."""
    if size in CPU_HEADS:
        return None
    return (
        f"head_dim is {size}, vLLM on a CPU computes attention for heads of "
        f"{', '.join(map(str, CPU_HEADS))} only (a request would kill it): sample with "
        "engine.name = 'transformers', or on a GPU"
    )
