"""Train the lab's base model from scratch: `python -m lab_base.pretrain --out DIR --seed 0`.

Owns the recipe. Training end to end from scratch stays at chance; two stages work:

1. *see*: the vision tower with a throw-away head on each picture token (colour, digit, place);
2. *speak*: short sequences (place a card, read it, read a crop, add, write down what to calculate
   or to look up, find a result in a text) with the vision tower frozen but for its mergers.

The result is a folder that any Qwen3-VL loader reads. It has never seen a tool call.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lab_base import model as lab_model
from lab_base.card import model_card
from lab_base.dense import DenseBatch, DenseLessons
from lab_base.lessons import SequenceBatch, SequenceLessons
from lab_base.measure import measure
from lab_base.tokenizer import build_tokenizer, tools_header

Report = Callable[[str], None]
FIRST_STEPS = 5
"""The losses of this many steps are recorded, so that a test can reproduce them."""


@dataclass(frozen=True)
class PretrainSettings:
    """The shipped base's recipe; a smaller one makes a worse base sooner."""

    seed: int = 0
    see_steps: int = 3000
    see_batch: int = 64
    see_lr: float = 2e-3
    speak_steps: int = 1500
    speak_batch: int = 64
    speak_lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    workers: int = 1


class DenseHead(nn.Module):
    """Throw-away head: what card is under each picture token."""

    def __init__(self, hidden: int, streams: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden * streams)
        self.out = nn.Linear(hidden * streams, 5 + 10 + 3)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        colour, digit, place = self.out(self.norm(features)).split((5, 10, 3), dim=-1)
        return colour, digit, place


def dense_loss(visual: Any, head: DenseHead, batch: DenseBatch) -> torch.Tensor:
    """Cross-entropies of colour and digit, and a robust distance of place and size."""
    features, deep = lab_model.encode(visual, batch.views)
    colour, digit, place = head(torch.cat([features, *deep], -1))
    card = batch.colour > 0
    known = (batch.digit >= 0).float() * batch.weight
    digits = F.cross_entropy(
        digit.flatten(0, 1), batch.digit.clamp(min=0).flatten(), reduction="none"
    )
    return (
        F.cross_entropy(colour.flatten(0, 1), batch.colour.flatten())
        + (digits * known.flatten()).sum() / known.sum().clamp(min=1e-3)
        + 10 * F.smooth_l1_loss(place[card], batch.place[card], beta=0.02)
    )


def sequence_loss(model: Any, batch: SequenceBatch) -> torch.Tensor:
    """Mean cross-entropy of the trained tokens."""
    hidden = lab_model.forward(model, batch.ids, batch.positions, batch.views)
    at = batch.loss[:, 1:]
    logits = model.lm_head(hidden[:, :-1][at])
    return F.cross_entropy(logits, batch.ids[:, 1:][at])


def _optimizer(modules: list[nn.Module], lr: float, decay: float) -> torch.optim.AdamW:
    params = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _fit(
    loss_of: Callable[[Any], torch.Tensor], batches: Iterable[Any], optimizer: torch.optim.AdamW,
    steps: int, warmup: int,
) -> Iterator[float]:  # fmt: skip
    """One optimizer step a batch, warm-up then cosine to 2 %; yields each step's loss."""
    peak = optimizer.param_groups[0]["lr"]
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for step, batch in enumerate(batches):
        share = min(1.0, (step + 1) / warmup)
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = peak * share * cosine
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        yield loss.item()


def _loader(lessons: Any, workers: int) -> Iterable[Any]:
    if workers == 0:
        return (lessons[i] for i in range(len(lessons)))
    return DataLoader(lessons, batch_size=None, num_workers=workers, prefetch_factor=4)


def see(model: Any, settings: PretrainSettings) -> Iterator[float]:
    """Stage 1; yields losses."""
    visual = model.model.visual
    head = DenseHead(lab_model.HIDDEN, 1 + len(visual.deepstack_visual_indexes))
    optimizer = _optimizer([visual, head], settings.see_lr, settings.weight_decay)
    lessons = DenseLessons(settings.seed, settings.see_steps, settings.see_batch)
    yield from _fit(
        lambda batch: dense_loss(visual, head, batch),
        _loader(lessons, settings.workers),
        optimizer,
        settings.see_steps,
        settings.warmup,
    )


def speak(
    model: Any, tokenizer: Any, headers: Sequence[str], settings: PretrainSettings
) -> Iterator[float]:
    """Stage 2; yields losses."""
    visual = model.model.visual
    visual.requires_grad_(False)
    visual.merger.requires_grad_(True)
    visual.deepstack_merger_list.requires_grad_(True)
    optimizer = _optimizer([model], settings.speak_lr, settings.weight_decay)
    lessons = SequenceLessons(
        tokenizer, headers, settings.seed, settings.speak_steps, settings.speak_batch
    )
    yield from _fit(
        lambda batch: sequence_loss(model, batch),
        _loader(lessons, settings.workers),
        optimizer,
        settings.speak_steps,
        settings.warmup,
    )
    visual.requires_grad_(True)


def save_base(folder: Path, model: Any, tokenizer: Any) -> None:
    """Everything a Qwen3-VL loader reads, but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = [
        tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")
    ]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": lab_model.PATCH, "merge_size": lab_model.MERGE, "temporal_patch_size": 2,
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "do_convert_rgb": True, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "size": {"shortest_edge": lab_model.MIN_PIXELS, "longest_edge": lab_model.MAX_PIXELS},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _log(name: str, losses: Iterator[float], steps: int, report: Report) -> list[float]:
    """Runs a stage to its end; returns its first losses."""
    begun, recent, first = time.monotonic(), [], []
    for step, loss in enumerate(losses):
        recent = [*recent[-49:], loss]
        if step < FIRST_STEPS:
            first.append(loss)
        if (step + 1) % 50 == 0:
            spent = time.monotonic() - begun
            left = spent / (step + 1) * (steps - step - 1)
            mean = sum(recent) / len(recent)
            report(f"{name} {step + 1}/{steps} loss {mean:.3f} {spent:.0f} s, {left:.0f} s left")
    return first


def pretrain(
    out: Path, toolsets: list[list[dict[str, Any]]], settings: PretrainSettings,
    report: Report = print,
) -> Any:  # fmt: skip
    """Both stages; saves the folder with its record `pretrain.json` and returns the model."""
    begun = time.monotonic()
    torch.manual_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(*toolsets)
    model = lab_model.build_model(tokenizer)
    headers = [tools_header(specs) for specs in toolsets]
    report(f"{asdict(settings)}")
    first = {
        "see": _log("see", see(model, settings), settings.see_steps, report),
        "speak": _log(
            "speak", speak(model, tokenizer, headers, settings), settings.speak_steps, report
        ),
    }
    minutes = round((time.monotonic() - begun) / 60, 1)
    save_base(out, model, tokenizer)
    numbers = measure(model, tokenizer, headers[0], "test")
    report(f"{minutes} minutes; on test pictures: {numbers}")
    record = {
        "settings": asdict(settings), "minutes": minutes, "first_losses": first, "test": numbers,
    }  # fmt: skip
    (out / "pretrain.json").write_text(json.dumps(record, indent=2) + "\n")
    parameters = sum(p.numel() for p in model.parameters())
    (out / "README.md").write_text(model_card(record, parameters))
    return model


def toolsets() -> list[list[dict[str, Any]]]:
    """Specs of the tools that the lab's recipes name: of one, of three, of the unseen one too."""
    from axpo.tools.image_search import ImageSearchTool
    from axpo.tools.python import SPEC as PYTHON
    from axpo.tools.web_search import WebSearchTool
    from axpo.tools.zoom import SPEC as ZOOM

    three = [ZOOM, PYTHON, WebSearchTool.spec]
    return [[ZOOM], three, [*three, ImageSearchTool.spec]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pretrain(args.out, toolsets(), PretrainSettings(seed=args.seed), lambda s: print(s, flush=True))


if __name__ == "__main__":
    main()
