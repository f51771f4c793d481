"""What a lab model can do: digits read from crops and from the small view, cards placed, and what
it writes once it has named a digit.

Owns the numbers of the base's model card. Greedy and teacher-forced up to the measured tokens.
"""

from __future__ import annotations

import random
from typing import Any

import torch

from axpo.tasks.lab import calculate, facts, look_up, teacher, words
from axpo.tasks.lab.pictures import Scene, SceneBox, Split, make_scene, shows, to_pixels
from lab_base.dense import WHOLE_PICTURE
from lab_base.lessons import Lesson, collate, prompt_text, shifted, text_lesson
from lab_base.model import forward, view


@torch.no_grad()
def next_logits(model: Any, tokenizer: Any, items: list[tuple[str, list[Any]]]) -> torch.Tensor:
    """Logits after each `(text, views)`, in batches of 100."""
    parts = []
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for start in range(0, len(items), 100):
        chunk = items[start : start + 100]
        rows = [(tokenizer.encode(text, add_special_tokens=False), []) for text, _ in chunk]
        batch = collate(rows, [v for _, vs in chunk for v in vs], image, tokenizer.pad_token_id)
        hidden = forward(model, batch.ids, batch.positions, batch.views)
        last = torch.tensor([len(ids) - 1 for ids, _ in rows])
        parts.append(model.lm_head(hidden[torch.arange(len(rows)), last]))
    return torch.cat(parts)


def _digit_ids(tokenizer: Any) -> list[int]:
    return [tokenizer.encode(str(d), add_special_tokens=False)[0] for d in range(10)]


def reading_accuracy(
    model: Any, tokenizer: Any, header: str, scenes: list[Scene], question: str,
    thinking: list[str],
    boxes: list[list[SceneBox]],
) -> float:  # fmt: skip
    """Share of scenes whose target digit is the most probable of the ten."""
    items = [
        (
            prompt_text(question, len(b), header)
            + f"{thought}{words.CLOSE_THINKING}{words.ANSWER}",
            [view(scene.picture, box) for box in b],
        )
        for scene, thought, b in zip(scenes, thinking, boxes, strict=True)
    ]
    logits = next_logits(model, tokenizer, items)[:, _digit_ids(tokenizer)]
    truth = torch.tensor([scene.target.digit for scene in scenes])
    return (logits.argmax(-1) == truth).float().mean().item()


def placing(model: Any, tokenizer: Any, header: str, scenes: list[Scene]) -> dict[str, float]:
    """Greedy decoding of the red card's cell and, given the right cell, of its window."""
    prompt = prompt_text(words.ASK_PLACE + "red card?", 1, header)
    views = [view(scene.picture) for scene in scenes]

    def greedy(starts: list[str], tokens: int) -> list[str]:
        texts = [prompt + start for start in starts]
        for _ in range(tokens):
            logits = next_logits(
                model, tokenizer, [(t, [v]) for t, v in zip(texts, views, strict=True)]
            )
            new = [tokenizer.decode([i]) for i in logits.argmax(-1).tolist()]
            texts = [t + n for t, n in zip(texts, new, strict=True)]
        return [t[len(prompt) + len(s) :] for t, s in zip(texts, starts, strict=True)]

    right = [words.cell_phrase(*teacher.cell_of(scene.target)) for scene in scenes]
    cells = greedy([words.TOO_SMALL] * len(scenes), 2)
    opening = words.CLOSE_THINKING + words.BOX_OPEN
    windows = greedy([words.TOO_SMALL + cell + opening for cell in right], 4)
    hits = [_hit(scene, text) for scene, text in zip(scenes, windows, strict=True)]
    return {
        "cell": sum(a == b for a, b in zip(cells, right, strict=True)) / len(scenes),
        "window_hit_given_cell": sum(hits) / len(scenes),
    }


@torch.no_grad()
def right_share(
    model: Any, tokenizer: Any, header: str, lessons: list[Lesson], scenes: list[Scene]
) -> float:
    """Share of lessons whose every trained token is the most probable one."""
    rows: list[tuple[list[int], list[int]]] = []
    views: list[Any] = []
    for (question, boxes, given, rest), scene in zip(lessons, scenes, strict=True):
        text = prompt_text(question, len(boxes), header) + given
        context, trained = (tokenizer.encode(t, add_special_tokens=False) for t in (text, rest))
        rows.append((context, trained))
        views += [view(scene.picture, box) for box in boxes]
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    batch = collate(rows, views, image, tokenizer.pad_token_id)
    hidden = forward(model, batch.ids, batch.positions, batch.views)
    wrong = model.lm_head(hidden[:, :-1]).argmax(-1) != batch.ids[:, 1:]
    return 1 - (wrong & batch.loss[:, 1:]).any(1).float().mean().item()


def writing(model: Any, tokenizer: Any, header: str, scenes: list[Scene]) -> dict[str, float]:
    """What follows once the red card's digit is named, and what is found in a text."""
    rng = random.Random("lab-measure-writing")
    kinds: dict[str, list[Lesson]] = {}

    def add(kind: str, question: str, thinking: str, answer: str) -> None:
        lesson = question, [WHOLE_PICTURE], thinking, answer[len(thinking) :]
        kinds.setdefault(kind, []).append(lesson)

    for scene in scenes:
        digit = scene.target.digit
        seen = teacher.seeing(teacher.cell_of(scene.target), digit)
        number = calculate.make_number(True, digit, rng)
        answer = teacher.recalling_turn(seen, digit * number)
        add("products_by_heart", calculate.product_question(number), seen + words.BY_HEART, answer)
        place = look_up.make_place(True, "test", digit, rng)
        answer = teacher.recalling_turn(seen, facts.code(place, digit))
        add("codes_by_heart", look_up.code_question(place), seen + words.BY_HEART, answer)
        query = words.CLOSE_THINKING + words.query_phrase(facts.key(place, digit))
        opening = seen + words.LOOK_UP + words.CLOSE_THINKING + words.QUERY_OPEN
        add("writes_queries", look_up.code_question(place), opening, seen + words.LOOK_UP + query)
        kinds.setdefault("finds_in_text", []).append(text_lesson(scene, rng))
    return {
        name: right_share(model, tokenizer, header, found, scenes) for name, found in kinds.items()
    }


def _hit(scene: Scene, text: str) -> bool:
    try:
        x1, y1, x2, y2 = (float(v) for v in text.removesuffix("]").split(", "))
    except ValueError:
        return False
    return shows(scene.target, (x1, y1, x2, y2))


def measure(
    model: Any, tokenizer: Any, header: str, split: Split = "test", count: int = 500
) -> dict[str, float]:
    """All numbers of the model card on `count` scenes for each row."""
    model.eval()
    easy = [make_scene(split, 10**6 + i, easy=True) for i in range(count)]
    hard = [make_scene(split, 10**6 + i, easy=False) for i in range(count)]
    ask = words.ASK_DIGIT + "red card?"
    rng = random.Random("lab-measure")
    result = placing(model, tokenizer, header, [*easy[: count // 2], *hard[: count // 2]])
    result |= writing(model, tokenizer, header, easy[: count // 2])
    for name, scenes in (("easy", easy), ("hard", hard)):
        whole = [[WHOLE_PICTURE]] * count
        crops = [to_pixels(teacher.window_of(s.target)) for s in scenes]
        off = [to_pixels(shifted(teacher.window_of(s.target), rng)) for s in scenes]

        def read(
            question: str, thinking: str, boxes: list[list[SceneBox]], s: list[Scene] = scenes
        ):
            thoughts = [thinking] * len(s)
            return reading_accuracy(model, tokenizer, header, s, question, thoughts, boxes)

        cells = [words.LARGE_ENOUGH + words.cell_phrase(*teacher.cell_of(s.target)) for s in scenes]
        result[f"read_small_view_{name}"] = reading_accuracy(
            model, tokenizer, header, scenes, ask, cells, whole
        )
        result[f"read_crop_{name}"] = read(words.ASK_SHOWN, words.FOUND, [[c] for c in crops])
        both = [[WHOLE_PICTURE, c] for c in crops]
        result[f"read_crop_after_scene_{name}"] = read(words.ASK_SHOWN, words.FOUND, both)
        missed = [[WHOLE_PICTURE, c] for c in off]
        result[f"read_missed_crop_{name}"] = read(words.ASK_SHOWN, words.NOT_FOUND, missed)
    return {name: round(value, 3) for name, value in result.items()}
