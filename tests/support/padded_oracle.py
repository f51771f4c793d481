"""Slow and obvious reference for packed training, and the groups to compare on.

Every trajectory is a row of its own: its whole path through transformers' own forward pass,
with the pictures as pixel values and the positions of `get_rope_index`. Nothing of
`axpo.training` is used here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.models.loading import Checkpoint, token_id
from axpo.pictures import picture_digest
from axpo.tree import Branch, Credit, Group, ImageSpan, Origin, Segment, Stream, Trajectory
from tests.support.tiny import tiny_picture

WORDS = 100
Loss = Callable[[TokenBatch], tuple[torch.Tensor, dict[str, float]]]


# ------------------------------------------------------------------ groups


class Builder:
    """Makes groups of random tokens with real pictures for one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self.checkpoint = checkpoint
        self.random = random.Random(seed)
        self.pictures = {}

    def words(self, count: int) -> list[int]:
        return [self.random.randrange(WORDS) for _ in range(count)]

    def policy(self, id: str, count: int, sampled: bool = True) -> Segment:
        logprobs = [self.random.gauss(-5.5, 0.3) for _ in range(count)] if sampled else []
        return Segment(id, Origin.POLICY, tuple(self.words(count)), tuple(logprobs))

    def shown(self, id: str, origin: Origin, seeds: Sequence[int], words: int) -> Segment:
        """`words` tokens, then each picture in its vision tags, then `words` tokens."""
        token = partial(
            token_id, self.checkpoint.processor.tokenizer, path=self.checkpoint.processor.path
        )
        tokens, spans = self.words(words), []
        for seed in seeds if self.checkpoint.processor.family.sees else ():
            picture = tiny_picture(seed, 64 if seed % 2 else 48)
            digest = picture_digest(picture)
            self.pictures[digest] = picture
            out = self.checkpoint.processor.image_processor(images=[picture], return_tensors="pt")
            t, h, w = out["image_grid_thw"][0].tolist()
            length = t * h * w // self.checkpoint.processor.merge_size**2
            tokens.append(token("<|vision_start|>"))
            spans.append(ImageSpan(digest, len(tokens), length))
            tokens += [self.checkpoint.processor.image_token] * length + [token("<|vision_end|>")]
        return Segment(id, origin, tuple(tokens + self.words(words)), (), tuple(spans))

    def group(self, id: str, pictures: Sequence[int], words: int = 6) -> Group:
        self.pictures = {}
        prompt = self.shown(f"{id}/prompt", Origin.PROMPT, pictures, words)
        return Group(id, prompt, pictures=self.pictures)

    def rollout(self, id: str, first: int, crop: int | None = None, last: int = 0) -> Trajectory:
        """`first` policy tokens and, with `crop`, an observation and `last` more."""
        segments = [self.policy(f"{id}/0", first)]
        if crop is not None:
            segments.append(self.shown(f"{id}/1", Origin.OBSERVATION, [crop], 2))
            segments.append(self.policy(f"{id}/2", last))
        return Trajectory(id, segments)


def credit_all(trajectory: Trajectory, start: int, advantage: float, weight: float) -> None:
    stream = Stream.CONTINUATION if start else Stream.ROLLOUT
    trajectory.credit = [Credit(start, start + trajectory.tokens, advantage, stream, weight)]


def grow(group: Group, build: Builder, source: str, cut: int, crops: Sequence[int]) -> Branch:
    """Continuations of `source` from `cut`, the source credited up to there (nothing at 0)."""
    branch = group.fork(group.trajectory(source), cut)
    for k, crop in enumerate(crops):
        id = f"{source}+{k}@{cut}"
        branch.continuations.append(build.rollout(id, 3 + k, crop, 4 + k))
        credit_all(branch.continuations[-1], cut, (-1.0, 0.8, 0.4)[k % 3], 0.25)
    if cut:
        credit = Credit(0, cut, 0.9, Stream.PREFIX, 0.25)
        group.trajectory(source).credit = [credit]
    return branch


def branching_group(checkpoint: Checkpoint, seed: int, id: str = "g") -> Group:
    """Two pictures in the prompt; plain and tool rollouts; three selected sources.

    Cuts: inside a first segment, inside a turn after an observation, and at 0. Crop 5 stands in
    several branches, picture 1 in the prompt and as a crop. r3 has no credit at all.
    """
    build = Builder(checkpoint, seed)
    group = build.group(id, [1, 2])
    group.rollouts = [
        build.rollout("r0", 9),
        build.rollout("r1", 7, 5, 6),
        build.rollout("r2", 6, 4, 8),
        build.rollout("r3", 12, 6, 5),
        build.rollout("r4", 5, 1, 3),
    ]
    for rollout, advantage in zip(group.rollouts, (1.0, -0.5, -0.7, 0.0, 0.6), strict=True):
        credit_all(rollout, 0, advantage, 0.25)
    group.rollouts[3].credit = []
    first, observed = (len(s) for s in group.rollouts[2].segments[:2])
    grow(group, build, "r1", 4, [5, 3, 5])
    grow(group, build, "r2", first + observed + 3, [5, 7])
    grow(group, build, "r4", 0, [1])
    return group


def demonstration_group(checkpoint: Checkpoint, seed: int, id: str = "d") -> Group:
    """One unsampled trajectory: turn, picture, turn."""
    build = Builder(checkpoint, seed)
    group = build.group(id, [3])
    segments = [
        build.policy(f"{id}/0", 6, sampled=False),
        build.shown(f"{id}/1", Origin.OBSERVATION, [4], 2),
        build.policy(f"{id}/2", 5, sampled=False),
    ]
    teacher = Trajectory(f"{id}/teacher", segments)
    teacher.credit = [Credit(0, teacher.tokens, 1.0, Stream.DEMONSTRATION, 1.0)]
    group.rollouts = [teacher]
    return group


# ------------------------------------------------------------------ rows


def row_inputs(checkpoint: Checkpoint, group: Group, trajectory: Trajectory) -> dict:
    """One row of model inputs: the whole path with its pictures' pixels."""
    path = group.path(trajectory)
    tokens = torch.tensor([[t for s in path for t in s.tokens]])
    pictures = [group.pictures[span.digest] for s in path for span in s.images]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if pictures:
        out = checkpoint.processor.image_processor(images=pictures, return_tensors="pt")
        inputs["pixel_values"] = out["pixel_values"]
        inputs["image_grid_thw"] = out["image_grid_thw"]
        inputs["mm_token_type_ids"] = (tokens == checkpoint.processor.image_token).int()
    return inputs


def padded_inputs(checkpoint: Checkpoint, rows: Sequence[dict]) -> dict:
    """Rows side by side, padded on the right to the longest; pictures repeated in each."""
    width = max(row["input_ids"].shape[1] for row in rows)
    names = ["input_ids", "attention_mask"]
    inputs = {}
    if any("pixel_values" in row for row in rows):
        names.append("mm_token_type_ids")
        for name in ("pixel_values", "image_grid_thw"):
            inputs[name] = torch.cat([row[name] for row in rows if name in row])
    for name in names:
        inputs[name] = torch.stack(
            [
                torch.nn.functional.pad(
                    row[name][0] if name in row else torch.zeros_like(row["input_ids"][0]).int(),
                    (0, width - row["input_ids"].shape[1]),
                )
                for row in rows
            ]
        )
    return inputs


def next_token_logprobs(checkpoint: Checkpoint, inputs: dict) -> torch.Tensor:
    """Log-probability [rows, length] of each token given those before it (0 for the first)."""
    model = checkpoint.model
    model.model.rope_deltas = None
    logits = model(**inputs, use_cache=False).logits.float()
    logits[..., list(checkpoint.processor.banned)] = float("-inf")
    logprobs = logits.log_softmax(-1)
    following = inputs["input_ids"][:, 1:, None]
    return torch.nn.functional.pad(logprobs[:, :-1].gather(-1, following)[..., 0], (1, 0))


def trained_logprobs(
    checkpoint: Checkpoint, group: Group, padded: bool = False
) -> list[tuple[Trajectory, Credit, torch.Tensor, torch.Tensor]]:
    """(trajectory, credit, logprobs, old) of each credit's policy tokens."""
    trajectories = [t for t in group.trajectories() if t.credit]
    rows = [row_inputs(checkpoint, group, t) for t in trajectories]
    if padded:
        logprobs = list(next_token_logprobs(checkpoint, padded_inputs(checkpoint, rows)))
    else:
        logprobs = [next_token_logprobs(checkpoint, row)[0] for row in rows]
    found = []
    for trajectory, row in zip(trajectories, logprobs, strict=True):
        is_policy = [
            s.origin is Origin.POLICY for s in group.after_prompt(trajectory) for _ in s.tokens
        ]
        old = [
            p for s in group.after_prompt(trajectory) for p in s.logprobs or (0.0,) * len(s.tokens)
        ]
        for credit in trajectory.credit:
            offsets = [o for o in range(credit.start, credit.end) if is_policy[o]]
            places = torch.tensor(offsets) + len(group.prompt)
            found.append((trajectory, credit, row[places], torch.tensor([old[o] for o in offsets])))
    return found


def oracle_loss(
    checkpoint: Checkpoint,
    groups: Sequence[Group],
    loss_fn: Loss,
    aggregation: str,
    reference: Checkpoint | None = None,
    padded: bool = False,
) -> torch.Tensor:
    """The update's loss: a mean an item, weighed, then over questions; or over all tokens."""
    total = sum(
        len(old) for group in groups for *_, old in trained_logprobs(checkpoint, group, padded)
    )
    loss = torch.zeros(())
    for group in groups:
        found = trained_logprobs(checkpoint, group, padded)
        with torch.no_grad():
            refs = trained_logprobs(reference, group) if reference else [None] * len(found)
        for (_, credit, logprobs, old), ref in zip(found, refs, strict=True):
            weight = 1.0 / total
            if aggregation == "question_mean":
                weight = credit.weight / len(old) / len(groups)
            batch = TokenBatch(
                logprobs,
                old,
                ref[2] if ref else None,
                torch.full_like(old, credit.advantage),
                torch.full_like(old, weight),
            )
            loss = loss + loss_fn(batch)[0]
    return loss


def gradients(checkpoint: Checkpoint, loss: torch.Tensor) -> torch.Tensor:
    """All parameters' gradients of `loss`, flat."""
    parameters = list(checkpoint.model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
    )
