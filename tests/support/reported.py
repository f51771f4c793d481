"""Run folders as a report reads them, made without a run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from axpo.config import parse_config
from axpo.folder import RunFolder
from axpo.pictures import picture_digest
from axpo.store import save_groups
from axpo.tree import (
    Branch,
    Call,
    CallStatus,
    Group,
    ImageSpan,
    Origin,
    Segment,
    StopReason,
    Trajectory,
)

HOSTILE = (
    "</script><script>document.documentElement.dataset.pwned=1</script>"
    "<img src=x onerror=document.documentElement.dataset.pwned=2>"
)
WORDS = (
    "the", " red", " card", " is", " too", " small", ",", " zoom", " in", "\n", "</think>",
    "<tool_call>", '{"bbox_2d": [', "120", ", ", "340", "]}", "</tool_call>", "Answer:", " 7", " 3",
    "<|image_pad|>", HOSTILE, "<|im_end|>",
)  # fmt: skip
THINK = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
CALL = (11, 12, 13, 14, 15, 16, 17)
CUT = len(THINK) + 1
END = 23
"""Ends a turn; not a part of its call."""


def decode(tokens) -> list[str]:
    return [WORDS[t] for t in tokens]


def scene(seed: int) -> Image.Image:
    """A picture with three framed cards on a gradient."""
    rng = random.Random(seed)
    draw = ImageDraw.Draw(picture := Image.linear_gradient("L").resize((384, 384)).convert("RGB"))
    for colour in ("#e1191e", "#1e46e6", "#f0d214"):
        x, y, side = rng.randint(8, 280), rng.randint(8, 280), rng.choice((42, 84))
        draw.rectangle((x, y, x + side, y + side), fill="white", outline=colour, width=6)
    return picture


def sampled(id: str, tokens, rng: random.Random) -> Segment:
    return Segment(
        id, Origin.POLICY, tuple(tokens), tuple(math.log(rng.uniform(0.2, 1)) for _ in tokens)
    )


def tool_part(group: Group, id: str, first, start: int, right: bool, rng: random.Random, picture):
    """Segments and call of a tool turn whose policy tokens are `first`, then the answer."""
    x, y = rng.randint(0, 800), rng.randint(0, 800)
    box = [x, y, x + rng.randint(60, 190), y + rng.randint(60, 190)]
    crop = picture.crop(tuple(v * 384 // 1000 for v in box)).resize((48, 48))
    digest = picture_digest(crop)
    group.pictures[digest] = crop
    status = CallStatus.OK if rng.random() < 0.85 else CallStatus.MODEL_ERROR
    images = (ImageSpan(digest, 1, 4),) if status is CallStatus.OK else ()
    observation = (9, 21, 21, 21, 21, 9) if images else (9, 0, 9)
    segments = [
        sampled(f"{id}/0", (*first, END), rng),
        Segment(f"{id}/1", Origin.OBSERVATION, observation, images=images),
        sampled(f"{id}/2", (2, 3, 10, 18, 19 if right else 20), rng),
    ]
    arguments = {"bbox_2d": box, "label": "digit", "img_idx": 0}
    error = None if images else "bbox_2d: x2 must be larger than x1"
    end = start + len(first)
    call = Call(CUT - 1, end, "image_zoom_in_tool", arguments, status, error)
    return segments, call, end + 1 + len(observation) + 3


def make_group(id: str, seed: int, algorithm: str, hostile: bool = False) -> Group:
    """Eight rollouts, three with a tool; seed % 3: recovered, hopeless, mixed."""
    rng = random.Random(seed)
    picture = scene(seed)
    digest = picture_digest(picture)
    prompt = Segment(
        f"{id}/prompt", Origin.PROMPT, (0, *[21] * 16, 1, 2), images=(ImageSpan(digest, 1, 16),)
    )
    question = HOSTILE if hostile else "Which digit is on the red card?"
    group = Group(id, prompt, question, (HOSTILE if hostile else "7",), pictures={digest: picture})
    for i in range(8):
        name = f"{id}/r{i}"
        tool = i < 3
        right = (tool and seed % 3 == 2 and i == 0) or (not tool and rng.random() < 0.4)
        think = (22, *THINK[1:]) if hostile else THINK
        if tool:
            segments, call, answer = tool_part(group, name, (*think, *CALL), 0, right, rng, picture)
            calls = [call]
        else:
            segments, calls = [sampled(f"{name}/0", (*think, 18, 19 if right else 20), rng)], []
            answer = len(think)
        said = HOSTILE if hostile else "7" if right else "3"
        reason = StopReason.ANSWER if i != 7 else StopReason.MAX_TOKENS
        group.rollouts.append(
            Trajectory(name, segments, calls, reason, said, answer, float(right), seconds=1.5)
        )
    if algorithm == "axpo" and seed % 3 != 2:
        for source in group.rollouts[: 1 + seed % 2]:
            grow(group, source, recovered=seed % 3 == 0, rng=rng, picture=picture)
    made = parse_config({"algorithm": {"name": algorithm}}).algorithm
    for trajectory, credit in made.credit(group).items():
        group.trajectory(trajectory).credit = credit
    return group


def grow(group: Group, source: Trajectory, recovered: bool, rng: random.Random, picture) -> Branch:
    branch = group.fork(source, CUT, confidence=rng.uniform(0.2, 0.7))
    for k in range(4):
        right = recovered and k in (1, 2)
        id = f"{source.id}/c{k}"
        segments, call, answer = tool_part(group, id, CALL[1:], CUT, right, rng, picture)
        branch.continuations.append(
            Trajectory(
                id, segments, [call], StopReason.ANSWER, "7" if right else "3", answer, float(right)
            )
        )
    return branch


def make_metrics(algorithm: str, steps: int, seed: int = 0) -> list[dict]:
    rng = random.Random(f"{algorithm}{seed}")
    axpo = algorithm == "axpo"
    lines = []
    for step in range(steps):
        t = step / max(1, steps - 1)
        line = {
            "kind": "rl", "step": step, "time": 1.7e9 + step,
            "accuracy": 0.44 + (0.22 if axpo else 0.1) * t + rng.gauss(0, 0.03),
            "tool_rate": 0.33 + (0.4 if axpo else -0.22) * t + rng.gauss(0, 0.03),
            "all_wrong_tool": 0.42 - (0.24 if axpo else 0.03) * t + rng.gauss(0, 0.05),
            "all_wrong_no_tool": 0.2 + rng.gauss(0, 0.03),
            "accuracy_tool": 0.3 + 0.3 * t * axpo + rng.gauss(0, 0.03),
            "accuracy_no_tool": 0.5 + rng.gauss(0, 0.02),
            "family_find_tool_rate": 0.3 + (0.6 if axpo else -0.3) * t,
            "family_look_up_tool_rate": 0.3 + 0.3 * t,
            "loss": rng.gauss(0, 0.01), "grad_norm": 0.4 + rng.random() * 0.2, "kl": 0.01 * t,
            "clip_fraction": 0.02 * rng.random(),
            "tokens_sampled": 3000.0, "tokens_trained": 2500.0, "tokens_packed": 5000.0,
            "stop_answer": 0.9, "stop_max_tokens": 0.08, "stop_max_turns": 0.02,
            "call_ok": 0.8, "call_malformed": 0.05, "call_model_error": 0.15,
            "seconds_step": 3.0, "seconds_sample": 0.9, "seconds_forward": 0.5,
            "seconds_backward": 0.8, "seconds_optimizer": 0.1, "seconds_tools": 0.3,
            "seconds_engine_prefill": 0.2, "seconds_engine_decode": 0.5,
        }  # fmt: skip
        if axpo:
            line |= {"branches": 6.0, "seconds_resample": 0.3, "extra_samples": 0.19}
            if not 3 <= step <= 8:  # nothing to resample there
                line["recovery_rate"] = 0.14 + rng.gauss(0, 0.05)
        lines.append(line)
    return lines


def make_validation(values: Sequence[float]) -> dict[str, Any]:
    """`validation.json` of evaluations every 4 steps, each a second of ten."""
    best = max(range(len(values)), key=lambda i: values[i])
    of = {"questions": 64, "eval.validation": "val", "eval.validation_samples": 4}
    return {
        "best": {"step": 4 * best, "metric": "pass@1", "value": values[best]},
        "ended": None,
        "made_with": of,
        "evaluations": [
            {"step": 4 * i, "seconds": 1.0, "since": 10.0, "figures": {"pass@1": value}}
            for i, value in enumerate(values)
        ],
    }


def make_run(
    root: Path,
    algorithm: str,
    steps: int = 40,
    groups: int = 6,
    hostile: bool = False,
    held_out: int = 0,
    validation: Sequence[float] = (),
) -> Path:
    """A run's folder with trees at its first and last step, answers to held-out questions, and
    evaluations while training, one every 4 steps, that found the values `validation`."""
    folder = root / algorithm
    folder.mkdir(parents=True)
    own = RunFolder(folder)
    own.claim()
    config = {"algorithm": {"name": algorithm}, "rl": {"steps": steps}}
    own.settings.write_text(parse_config(config).model_dump_json())
    metrics = make_metrics(algorithm, steps)
    if validation:
        metrics += [
            {"kind": "validation", "step": 4 * i, "time": 0.0, "validation_pass@1": value,
             "validation_tool_rate": 0.5}
            for i, value in enumerate(validation)
        ]  # fmt: skip
        own.validation.write_text(json.dumps(make_validation(validation)))
    lines = [json.dumps(line) for line in metrics]
    own.metrics.write_text("\n".join(lines) + "\n")
    for step in (0, steps - 1):
        made = [
            make_group(f"q{step}-{i}", 6 * step + i, algorithm, hostile and i == 0)
            for i in range(groups)
        ]
        save_groups(own.trees(step), made, own.pictures)
    if held_out:
        answered = [make_group(f"eval/{i}", 6 * steps + i, "grpo") for i in range(held_out)]
        for trajectory in (t for group in answered for t in group.trajectories()):
            trajectory.credit = []
        save_groups(own.evaluated.file(0), answered, own.pictures)
    return folder
