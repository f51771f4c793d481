"""The lab: splits, determinism, hits, wire format, teacher, and the shipped base model."""

from __future__ import annotations

import json
import random
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from renderers.qwen3_vl import Qwen3VLRenderer
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from axpo.tasks.lab import lessons, measure, model, pictures, pretrain, questions, teacher
from axpo.tasks.lab import tokenizer as words
from axpo.tools.zoom import SPEC, View, crop

BASE = Path(str(files("axpo.tasks.lab") / "base"))
HEADER = words.tools_header([SPEC])
CALL = re.compile(r"<tool_call>\n(.*)\n</tool_call>$", re.S)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def base():
    return Qwen3VLForConditionalGeneration.from_pretrained(BASE).eval()


# Splits and scenes


def test_splits_share_no_digit_and_no_background():
    ids = {s: {i for c in pictures.digit_ids(s) for i in c} for s in pictures.SPLITS}
    assert not ids["train"] & ids["val"] | ids["train"] & ids["test"] | ids["val"] & ids["test"]
    assert sum(map(len, ids.values())) == 1797
    assert all(len(c) >= 10 for s in pictures.SPLITS for c in pictures.digit_ids(s))
    tiles = {s: set(pictures.region_ids(s)) for s in pictures.SPLITS}
    assert sum(map(len, tiles.values())) == len(set().union(*tiles.values())) == 12
    seen = np.zeros((2, 427, 640), int)
    for photo, (left, top, right, bottom) in pictures.regions():
        seen[photo, int(top) : int(bottom), int(left) : int(right)] += 1
    assert seen.max() == 1


def test_identical_handwriting_never_crosses_splits():
    images, _ = pictures._digits()
    by_pixels: dict[bytes, set[str]] = {}
    for image in images:
        by_pixels.setdefault(image.tobytes(), set()).add(pictures.split_of_digit(image))
    assert all(len(splits) == 1 for splits in by_pixels.values())


def test_scene_is_a_function_of_split_and_seed():
    a, b = pictures.make_scene("val", 5), pictures.make_scene("val", 5)
    assert a.picture.tobytes() == b.picture.tobytes() and a.cards == b.cards
    assert a.picture.tobytes() != pictures.make_scene("val", 6).picture.tobytes()
    assert a.picture.size == (pictures.SIDE, pictures.SIDE)


@pytest.mark.parametrize("split", pictures.SPLITS)
def test_scenes_hold_one_red_card_and_other_distractors(split):
    used = {i for c in pictures.digit_ids(split) for i in c}
    for seed in range(30):
        scene = pictures.make_scene(split, seed)
        assert 2 <= len(scene.cards) <= 3 and scene.target.colour == "red"
        assert len({c.colour for c in scene.cards}) == len(scene.cards)
        assert len({c.digit for c in scene.cards}) == len(scene.cards)
        assert scene.region in pictures.region_ids(split)
        for card in scene.cards:
            assert card.digit_id in used
            assert min(card.box) >= 0 and max(card.box) <= pictures.SIDE


def test_a_hit_shows_the_digit_whole_and_readably():
    scene = pictures.make_scene("train", 3, easy=False)
    a, b, c, d = pictures.to_relative(scene.target.digit_box)
    assert pictures.is_hit(scene, (a - 5, b - 5, c + 5, d + 5))
    third = (c - a) / 3
    assert not pictures.is_hit(scene, (a + third, b - 5, c + third, d + 5))
    assert not pictures.is_hit(scene, (0, 0, 1000, 1000))


# Task and teacher


def test_task_examples_are_deterministic_and_splits_bounded():
    task = questions.LabTask(seed=1)
    a, b = task.example("sft", 7), task.example("sft", 7)
    assert a.images[0].tobytes() == b.images[0].tobytes() and a.demonstration == b.demonstration
    assert a.images[0].tobytes() != task.example("train", 7).images[0].tobytes()
    assert task.size("train") is None and task.size("test") == 1024
    assert task.example("val", 0).demonstration == ()
    with pytest.raises(IndexError, match="val has 512"):
        task.example("val", 512)
    with pytest.raises(ValueError, match="split 'dev'"):
        task.size("dev")


def test_precise_teacher_always_hits_and_answers_right():
    settings = teacher.TeacherSettings(tool_easy=1.0, tool_hard=1.0)
    for seed in range(200):
        scene = pictures.make_scene("train", seed)
        turns = teacher.demonstration(scene, random.Random(seed), settings)
        assert pictures.is_hit(scene, _bbox(turns[0]))
        assert turns[1].endswith(f"Answer: {scene.target.digit}")


def test_a_missing_teacher_is_near_chance():
    settings = teacher.TeacherSettings(tool_easy=1, tool_hard=1, wrong_window=1.0)
    right = misses = 0
    for seed in range(600):
        scene = pictures.make_scene("train", seed)
        turns = teacher.demonstration(scene, random.Random(seed), settings)
        if not pictures.is_hit(scene, _bbox(turns[0])):
            misses += 1
            right += turns[1].endswith(f"Answer: {scene.target.digit}")
    assert misses > 450 and right / misses < 0.16


def _bbox(turn: str) -> list[int]:
    match = CALL.search(turn)
    assert match is not None
    call = json.loads(match.group(1))
    assert call["name"] == "image_zoom_in_tool" and set(call["arguments"]) == {
        "bbox_2d", "label", "img_idx",
    }  # fmt: skip
    return call["arguments"]["bbox_2d"]


# Tokenizer and pictures in the real wire format


@pytest.mark.parametrize("text", ["héllo ✓ <b>\n\n 12,40", "Answer: 7<|im_end|>", "row 9, 1000"])
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_prompt_equals_the_renderers_and_is_short(tokenizer):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    message["content"][1]["text"] = questions.QUESTION
    rendered = Qwen3VLRenderer(tokenizer).render(
        [message], tools=[SPEC], add_generation_prompt=True, process_multimodal=False
    )
    thinking = tokenizer.encode("<think>\n", add_special_tokens=False)
    text = lessons.prompt_text(questions.QUESTION, 1, HEADER)
    text = text.replace("<|image_pad|>" * model.IMAGE_TOKENS, "<|image_pad|>")
    assert [*rendered.token_ids, *thinking] == tokenizer.encode(text, add_special_tokens=False)
    assert len(rendered.token_ids) + len(thinking) + model.IMAGE_TOKENS - 1 < 40


def test_a_demonstrated_call_parses(tokenizer):
    turn = teacher.zoom_turn((1, 2), (0, 160, 160, 320))
    ids = tokenizer.encode(turn + "<|im_end|>", add_special_tokens=False)
    assert len(ids) <= 16
    prompt = tokenizer.encode(lessons.prompt_text("?", 1, HEADER), add_special_tokens=False)
    parsed = Qwen3VLRenderer(tokenizer).parse_response(ids, prompt_ids=prompt)
    (call,) = parsed.tool_calls
    assert call.status.value == "ok" and call.arguments["bbox_2d"] == [0, 160, 160, 320]


def test_training_views_are_what_processor_and_tool_make():
    processor = AutoImageProcessor.from_pretrained(BASE, backend="pil")
    for seed in range(20):
        scene = pictures.make_scene("val", seed)
        window = teacher.window_of(scene.target)
        whole = View(scene.picture, scene.picture, (0, 0, pictures.SIDE, pictures.SIDE))
        boxes = ((scene.picture, None), (crop(whole, window).image, pictures.to_pixels(window)))
        for picture, box in boxes:
            out = processor(images=[picture], return_tensors="pt")
            assert out["image_grid_thw"].tolist() == [[1, 8, 8]]
            mine = model.patchify(torch.from_numpy(model.view(scene.picture, box))[None])[0]
            assert torch.equal(mine, out["pixel_values"])


# Model


def test_fast_forward_equals_transformers(base, tokenizer):
    batch = lessons.SequenceLessons(tokenizer, HEADER, 0, 1, 6, "val")[0]
    image = batch.ids == base.config.image_token_id
    with torch.no_grad():
        mine = model.forward(base, batch.ids, batch.positions, batch.views)
        theirs = base.model(
            input_ids=batch.ids,
            pixel_values=model.patchify(batch.views).flatten(0, 1),
            image_grid_thw=torch.tensor([[1, 8, 8]] * len(batch.views)),
            mm_token_type_ids=image.int(),
        ).last_hidden_state
    assert (mine - theirs).abs().max() < 1e-4


def test_base_has_never_seen_a_call(tokenizer):
    """No lesson holds a token of a call or of a tool's answer."""
    batch = lessons.SequenceLessons(tokenizer, HEADER, 0, 3, 30)
    ids = torch.cat([b.ids.flatten() for b in (batch[0], batch[1], batch[2])])
    calls = [words.CALL_OPEN, words.CALL_CLOSE, "<tool_call>", "<tool_response>"]
    for text in calls:
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        assert token not in ids


def test_base_reads_crops_and_easy_cards_but_not_hard_ones(base, tokenizer):
    numbers = measure.measure(base, tokenizer, HEADER, "val", 60)
    assert numbers["read_crop_hard"] > 0.85
    assert numbers["read_crop_after_scene_hard"] > 0.85
    assert numbers["read_small_view_easy"] > 0.6
    assert numbers["read_small_view_hard"] < 0.45
    assert numbers["read_missed_crop_hard"] < 0.35
    assert numbers["cell"] > 0.6 and numbers["window_hit_given_cell"] > 0.5


def test_pretraining_reproduces_its_first_losses():
    """Same seed, same pictures, same arithmetic: recorded on another machine to 2 %."""
    recorded = json.loads((BASE / "pretrain.json").read_text())
    torch.manual_seed(recorded["settings"]["seed"])
    fresh = model.build_model(words.build_tokenizer([SPEC]))
    settings = pretrain.PretrainSettings(**{**recorded["settings"], "workers": 0})
    losses = pretrain.see(fresh, settings)
    first = [next(losses) for _ in range(3)]
    assert first == pytest.approx(recorded["first_losses"]["see"][:3], rel=0.02)
