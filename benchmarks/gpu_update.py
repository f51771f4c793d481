"""What bfloat16 brings on a GPU: seconds and memory of an update, decoding.

`python -m benchmarks.gpu_update` prints one line per case, and whether an update in pieces takes
the memory that `axpo.costs.memory` says. The model is random, 2,048 wide like Qwen3-VL-2B with
fewer layers; the trees are AXPO's (`models`). Compilation falls into the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import time
from collections.abc import Sequence
from functools import partial

import torch
from transformers import Qwen3VLForConditionalGeneration

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.costs import memory
from axpo.engines.base import Picture, Request, Sampling
from axpo.engines.transformers import TransformersEngine
from axpo.models.families import family_of
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.loading import Checkpoint
from axpo.training.batches import prepare
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.training.pieces import Piece, cut
from axpo.tree import Group
from benchmarks.gpu import MARK
from benchmarks.models import Shape, training_checkpoint, training_group

OBJECTIVE = Objective(partial(ClipLoss().of, kl=0.0), "question_mean")


def wide_checkpoint(device: str, dtype: torch.dtype, width: int, layers: int) -> Checkpoint:
    """`training_checkpoint` with a text model of `width` and heads of 128 (at least two)."""
    small = training_checkpoint(stock=True)
    config = small.model.config
    text = config.text_config
    text.hidden_size, text.intermediate_size = width, 3 * width
    text.num_hidden_layers, text.head_dim = layers, 128
    text.num_attention_heads = max(2, width // 128)
    text.num_key_value_heads = text.num_attention_heads // 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [24, 20, 20]}
    config.vision_config.out_hidden_size = width
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration._from_config(config, dtype=dtype).to(device)
    family_of(model.config).settle(model)
    return dataclasses.replace(small, model=model.eval())


def updates(checkpoint: Checkpoint, groups: Sequence[Group], rounds: int) -> dict:
    """Median seconds of an update and the most memory it took."""
    cuda = checkpoint.model.device.type == "cuda"
    settings = OptimizerSettings(learning_rate=1e-6, max_tokens_per_micro_batch=32768)
    learner = LocalLearner(checkpoint, None, settings, rounds)
    seconds = []
    for _ in range(rounds + 2):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        metrics = learner.update(groups, OBJECTIVE)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    middle = sorted(seconds[2:])[rounds // 2]
    return {
        "seconds": round(middle, 4),
        "packed_tokens_per_second": round(metrics["tokens_packed"] / middle),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
    }


def pieces_memory(checkpoint: Checkpoint, group: Group, budget: int) -> dict:
    """Bytes that an update in pieces takes at its peak, and what the formulas say.

    Both beside weights, masters and moments; gradients, keys, values and activations are in.
    """
    device, text = checkpoint.model.device, checkpoint.model.config.text_config
    settings = OptimizerSettings(
        learning_rate=1e-6, max_tokens_per_micro_batch=budget, freeze_vision=True
    )
    learner = LocalLearner(checkpoint, None, settings, 3)
    learner.update([group], OBJECTIVE)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    metrics = learner.update([group], OBJECTIVE)
    measured = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    tokens = int(metrics["tokens_packed"])
    forest = prepare(checkpoint.processor, [group], OBJECTIVE)[0].tree
    above, own = held(*cut(forest, budget))
    size = checkpoint.model.dtype.itemsize
    predicted = (
        memory.keys_values(text, 2 * (above + own) + budget, size)
        + memory.text_activations(
            text, tokens=budget, keys=above + budget, size=size, recompute=False
        )
        + memory.logits(text, budget, LOGITS_AT_ONCE)
        + sum(p.numel() for p in learner.parameters) * memory.FLOAT32
    )
    return {"tokens": tokens, "trunk": above, "measured": measured, "predicted": predicted}


def held(forest: PackedTree, pieces: Sequence[Piece]) -> tuple[int, int]:
    """The most tokens that stand above a piece, and the most of a piece that others see."""
    nodes = forest.nodes
    above = []
    for piece in pieces:
        tokens, node = 0, nodes[piece.first].parent
        while node >= 0:
            tokens += nodes[node].end - nodes[node].start
            node = nodes[node].parent
        above.append(tokens)
    own = [sum(nodes[i].end - nodes[i].start for i in piece.trunk) for piece in pieces]
    return max(above), max(own)


def decoding(checkpoint: Checkpoint, group: Group, rows: int, tokens: int) -> dict:
    """Sampled tokens per second of `rows` rollouts of one prompt, the second time."""
    pictures = tuple(Picture(s.digest, group.pictures[s.digest]) for s in group.prompt.images)

    async def main() -> float:
        engine = TransformersEngine(checkpoint)
        for number in range(2):
            requests = [
                Request(
                    f"r{i}",
                    f"g{number}",
                    group.prompt.tokens,
                    pictures,
                    Sampling(tokens, i, (), checkpoint.processor.banned),
                )
                for i in range(rows)
            ]
            began = time.perf_counter()
            await asyncio.gather(*(engine.generate(request) for request in requests))
        return rows * tokens / (time.perf_counter() - began)

    return {"rows": rows, "sampled_tokens_per_second": round(asyncio.run(main()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--response", type=int, default=2048, help="of the tree in pieces")
    options = parser.parse_args()
    for name in ("float32", "bfloat16"):
        checkpoint = wide_checkpoint(
            options.device, getattr(torch, name), options.width, options.layers
        )
        groups = [
            dataclasses.replace(training_group(checkpoint, Shape(256, 256, 1), seed), id=f"g{seed}")
            for seed in range(options.questions)
        ]
        for rows in (8, 64):
            print({"dtype": name, **decoding(checkpoint, groups[0], rows, 64)}, flush=True)
        found = updates(checkpoint, groups, options.rounds)
        print({"dtype": name, **found}, flush=True)
    shape = Shape(256, options.response, 1)
    found = pieces_memory(checkpoint, training_group(checkpoint, shape), options.response * 2)
    print({"dtype": name, **found}, flush=True)
    if options.device == "cuda":
        share = found["measured"] / found["predicted"]
        answer = f"{'yes' if 0.5 < share < 1.15 else 'NO'}, {share:.2f} of it"
        print(f"{MARK}an update in pieces takes the memory of the formulas: {answer}", flush=True)


if __name__ == "__main__":
    main()
