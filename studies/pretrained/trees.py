"""Chosen trajectory trees of a training run as Markdown, for docs/study/pretrained/trees.md.

    python -m studies.pretrained.trees MODEL RUN GROUP [RUN GROUP ...]

MODEL is a folder with the tokenizer, RUN a training run's folder, GROUP an id such as s3/q1: step
3, second question. A tree shows its resampled rollouts whole with their continuations, or, where
nothing was resampled, some rollouts with and without a call, right ones first; the others have a
line each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from axpo.algorithms.subgroups import family_of, subgroup
from axpo.folder import RunFolder
from axpo.report.trees import CATEGORIES, category
from axpo.store import load_groups
from axpo.tree import Group, Trajectory

TURNS = (
    ("<|im_end|>\n<|im_start|>user\n", "\n"),
    ("<|im_end|>\n<|im_start|>assistant\n", "\n"),
    ("<|im_end|>", ""),
)
"""The markers of ChatML's turns, and what is shown instead."""
HEAD = """# Trajectory trees of the pretrained study

Made by `python -m studies.pretrained.trees` from trees that the runs saved;
[the page](../../pretrained.md#five-trees) says what they show. Prompts and the markers of turns are
left out. A continuation begins at the mark `⟂` of the rollout above it, whose thinking it shares.
Advantages are what training weighed the tokens with; a resampled rollout's is its thinking's.
"""
WHOLE = 2
"""Rollouts shown whole where nothing was resampled: so many with a call, so many without."""

Decode = Callable[[list[int]], str]


def markdown(run: Path, id: str, decode: Decode) -> Iterator[str]:
    """The lines of one tree."""
    step, group = _saved(run, id)
    variant, seed = run.parts[-2:]
    yield f"## {family_of(group)}: {CATEGORIES[category(group)]} ({variant}, {seed}, step {step})"
    yield ""
    yield from (f"> {line}".rstrip() for line in group.question.splitlines())
    yield ""
    yield f"Right is `{group.truths[0]}`. {_counts(group)}"
    shown = [group.trajectory(branch.source) for branch in group.branches] or _examples(group)
    for rollout in shown:
        yield from _whole(group, rollout, decode)
    if rest := [r for r in group.rollouts if r not in shown]:
        yield ""
        yield "The other rollouts:"
        yield ""
        yield from (f"- {_told(r)}, answer `{' '.join((r.answer or '').split())}`" for r in rest)
    yield ""


def _saved(run: Path, id: str) -> tuple[int, Group]:
    """The group and its step."""
    for step, file in RunFolder(run).saved_trees().items():
        for group in load_groups(file) if id.startswith(f"s{step}/") else ():
            if group.id == id:
                return step, group
    raise SystemExit(f"{id}: {run} has saved no such tree; expected a group such as s3/q1")


def _counts(group: Group) -> str:
    parts = []
    for name, uses in (("with a call", True), ("without", False)):
        some = subgroup(group, tool=uses)
        parts.append(f"{sum(bool(r.solved) for r in some)} of {len(some)} {name}")
    return f"Right rollouts: {', '.join(parts)}."


def _examples(group: Group) -> list[Trajectory]:
    right_first = sorted(group.rollouts, key=lambda r: not r.solved)
    with_call = [r for r in right_first if r.uses_tool]
    without = [r for r in right_first if not r.uses_tool]
    return with_call[:WHOLE] + without[:WHOLE]


def _whole(group: Group, rollout: Trajectory, decode: Decode) -> Iterator[str]:
    branch = next((b for b in group.branches if b.source == rollout.id), None)
    cut = None if branch is None else branch.cut
    yield ""
    resampled = "" if branch is None else ", resampled from the mark `⟂`"
    yield f"**{_told(rollout)}{resampled}**"
    yield from _text(rollout, decode, cut)
    for continuation in branch.continuations if branch else ():
        yield ""
        yield f"Continuation {_told(continuation)}"
        yield from _text(continuation, decode, None)


def _told(trajectory: Trajectory) -> str:
    """Its name in the group, its verdict and its advantages."""
    name = trajectory.id.split("/", 2)[-1]
    verdict = {True: "right", False: "wrong", None: "unscored"}[trajectory.solved]
    advantages = list(dict.fromkeys(f"{c.advantage:+.2f}" for c in trajectory.credit))
    credit = f"advantage {' and '.join(advantages)}" if advantages else "no credit"
    call = "" if trajectory.uses_tool else ", no call"
    return f"{name}: {verdict}{call}, {credit}"


def _text(trajectory: Trajectory, decode: Decode, cut: int | None) -> Iterator[str]:
    tokens = [token for segment in trajectory.segments for token in segment.tokens]
    text = decode(tokens) if cut is None else f"{decode(tokens[:cut])} ⟂{decode(tokens[cut:])}"
    for marker, shown in TURNS:
        text = text.replace(marker, shown)
    yield ""
    yield "```text"
    yield from text.rstrip().splitlines()
    yield "```"


def main(model: str = "", *chosen: str) -> None:
    """Print the trees."""
    if not chosen or len(chosen) % 2:
        raise SystemExit(__doc__)
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False))

    print(HEAD)
    for run, id in zip(chosen[::2], chosen[1::2], strict=True):
        print("\n".join(markdown(Path(run), id, decode)))


if __name__ == "__main__":
    main(*sys.argv[1:])
