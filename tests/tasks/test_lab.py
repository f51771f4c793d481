"""The lab: splits, determinism, hits, families, wire format, teacher, and the base model."""

from __future__ import annotations

import asyncio
import json
import random
import re

import numpy as np
import pytest
import torch
from renderers.qwen3_vl import Qwen3VLRenderer
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from axpo.build.tools import recipe_tools
from axpo.config import load_config
from axpo.errors import UserError
from axpo.models.loading import load_checkpoint
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.rendering import Rendering
from axpo.search.database import read_facts
from axpo.tasks.lab import (
    BASE,
    CORPUS,
    GALLERY,
    calculate,
    facts,
    look_up,
    pictures,
    questions,
    recognise,
    teacher,
    words,
)
from axpo.tasks.lab.task import LabTask
from axpo.tools.base import ToolContext
from axpo.tools.zoom import View, crop
from axpo.tree import CallStatus, Origin
from lab_base import data, lessons, measure, model, pretrain
from lab_base.tokenizer import build_tokenizer, tools_header

FAMILIES = ("find", "calculate", "look_up")
TOOLSETS = pretrain.toolsets()
HEADERS = [tools_header(specs) for specs in TOOLSETS]
HEADER = HEADERS[0]
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
    assert pictures.shows(scene.target, (a - 5, b - 5, c + 5, d + 5))
    third = (c - a) / 3
    assert not pictures.shows(scene.target, (a + third, b - 5, c + third, d + 5))
    assert not pictures.shows(scene.target, (0, 0, 1000, 1000))


# Task and teacher


def test_task_examples_are_deterministic_and_splits_bounded():
    task = LabTask()
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
        turns = teacher.find_demonstration(scene, random.Random(seed), settings)
        assert pictures.shows(scene.target, _bbox(turns[0]))
        assert turns[1].endswith(f"Answer: {scene.target.digit}")


def test_a_missing_teacher_is_near_chance():
    settings = teacher.TeacherSettings(tool_easy=1, tool_hard=1, wrong_call=1.0)
    right = misses = 0
    for seed in range(600):
        scene = pictures.make_scene("train", seed)
        turns = teacher.find_demonstration(scene, random.Random(seed), settings)
        if not pictures.shows(scene.target, _bbox(turns[0])):
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


# Families


def test_families_take_turns_and_recognise_is_never_trained_on():
    task = LabTask(families=FAMILIES)
    for split in ("train", "sft", "val", "test"):
        found = [task.example(split, i).meta["family"] for i in range(6)]
        assert found == [*FAMILIES, *FAMILIES]
    unseen = LabTask(families=("recognise",))
    assert unseen.example("test", 0).answer in facts.ALL_PLACES
    for split in ("train", "sft"):
        with pytest.raises(UserError, match="'recognise' is for evaluation"):
            unseen.size(split)


def test_places_of_splits_differ_and_every_path_ends_within_two_hops():
    places = [set(facts.PLACES[s]) for s in pictures.SPLITS]
    assert sum(map(len, places)) == len(set().union(*places)) == 48
    hops = []
    for split in pictures.SPLITS:
        for place in facts.PLACES[split]:
            for digit in range(10):
                path = facts.path(place, digit)
                hops.append(len(path))
                assert all(entry.place in facts.PLACES[split] for entry in path)
                assert [e.code is None for e in path] == [True] * (len(path) - 1) + [False]
    assert set(hops) == {1, 2} and 0.25 < hops.count(2) / len(hops) < 0.42


def test_easy_questions_are_known_by_heart_and_hard_ones_are_not():
    task = LabTask(families=FAMILIES)
    easy = []
    for index in range(240):
        example = task.example("test", index)
        (_, digit, _), *_ = example.meta["cards"]
        easy.append(example.meta["easy"])
        if example.meta["family"] == "calculate":
            number = int(re.findall(r"\d+", example.question)[0])
            assert int(example.answer) == digit * number
            assert calculate.is_known_product(digit, number) is example.meta["easy"]
        if example.meta["family"] == "look_up":
            (place,) = (p for p in facts.ALL_PLACES if p in example.question)
            assert example.meta["easy"] or place in facts.PLACES["test"]
            assert int(example.answer) == facts.code(place, digit)
            assert look_up.is_known_code(place, digit) is example.meta["easy"]
    assert 0.5 < sum(easy) / len(easy) < 0.74


@pytest.mark.parametrize("split", pictures.SPLITS)
def test_every_digit_has_known_and_unknown_facts(split):
    rng = random.Random(0)
    for digit in range(10):
        for easy in (True, False):
            assert calculate.make_number(easy, digit, rng) in calculate.NUMBERS
            place = look_up.make_place(easy, split, digit, rng)
            assert place in (facts.ALL_PLACES if easy else facts.PLACES[split])


def test_a_precise_teacher_of_each_family_ends_in_the_answer():
    precise = teacher.TeacherSettings(tool_easy=1.0, tool_hard=1.0)
    for index in range(60):
        rng, scene = random.Random(index), pictures.make_scene("train", index, easy=True)
        digit = scene.target.digit
        number = calculate.make_number(False, digit, rng)
        turns = calculate.product_demonstration(scene, number, rng, precise)
        assert turns[-1].endswith(f"Answer: {digit * number}") and len(turns) == 2
        assert digit * number == eval(calculate.formula(digit, number))
        place = look_up.make_place(False, "train", digit, rng)
        turns = look_up.code_demonstration(scene, place, rng, precise)
        path = facts.path(place, digit)
        assert turns[-1].endswith(f"Answer: {path[-1].code}") and len(turns) == len(path) + 1


def test_demonstrations_say_what_the_real_tools_answer():
    """Every demonstrated answer is in the last observation, and every call is answered."""
    config = load_config("lab")
    checkpoint = load_checkpoint(BASE)
    tools = recipe_tools(config)
    rendering = Rendering(checkpoint.processor, tools, None)
    task = config.task
    called = dict.fromkeys(config.rollout.tools, 0)

    async def main() -> None:
        await tools.start()
        try:
            for index in range(120):
                example = task.example("sft", index)
                group = await demonstrate(rendering, tools, config.rollout, example, f"g{index}")
                (rollout,) = group.rollouts
                for call in rollout.calls:
                    assert call.status is CallStatus.OK
                    called[call.name or ""] += 1
                seen = [s for s in rollout.segments if s.origin is Origin.OBSERVATION]
                if seen and example.meta["family"] != "find":
                    text = checkpoint.processor.tokenizer.decode(list(seen[-1].tokens))
                    said = example.demonstration[-1].split("Answer: ")[1]
                    assert re.search(rf"\b{said}\b", text), (text, said)
        finally:
            await tools.close()

    asyncio.run(main())
    assert all(count > 3 for count in called.values())


def test_shipped_indexes_are_what_the_script_builds(tmp_path):
    data.build(tmp_path / "corpus.index", tmp_path / "gallery.index")
    for kind, shipped in (("corpus", CORPUS), ("gallery", GALLERY)):
        built = read_facts(tmp_path / f"{kind}.index", kind)
        assert built == read_facts(shipped, kind)


def test_the_gallery_knows_nearly_every_photo_of_a_question():
    config = load_config("lab", 'rollout.tools=["image_search"]', 'tools.search.gallery="lab"')
    tools = recipe_tools(config)
    task = LabTask(families=("recognise",))

    async def main() -> int:
        await tools.start()
        right = 0
        for index in range(100):
            example = task.example("test", index)
            (picture,) = example.images
            view = View(picture, picture, (0, 0, *picture.size))
            found = await tools["image_search"]({"img_idx": 0}, ToolContext((view,)))
            right += f"[1] {example.answer}\n" in found.text
        await tools.close()
        return right

    assert asyncio.run(main()) >= 99
    photos = {recognise.photo(place).tobytes() for place in recognise.shown_places()}
    assert len(photos) == len(recognise.shown_places()) > 36


# Tokenizer and pictures in the real wire format


@pytest.mark.parametrize("text", ["héllo ✓ <b>\n\n 12,40", "Answer: 7<|im_end|>", "row 9, 1000"])
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("place", range(len(TOOLSETS)))
def test_prompt_equals_the_renderers_and_is_short(tokenizer, place):
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    message["content"][1]["text"] = questions.QUESTION
    rendered = Qwen3VLRenderer(tokenizer).render(
        [message], tools=TOOLSETS[place], add_generation_prompt=True, process_multimodal=False
    )
    thinking = tokenizer.encode("<think>\n", add_special_tokens=False)
    text = lessons.prompt_text(questions.QUESTION, 1, HEADERS[place])
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
    batch = lessons.SequenceLessons(tokenizer, HEADERS, 0, 1, 6, "val")[0]
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
    batch = lessons.SequenceLessons(tokenizer, HEADERS, 0, 3, 60)
    ids = torch.cat([b.ids.flatten() for b in (batch[0], batch[1], batch[2])])
    calls = [
        *(words.ZOOM_OPEN, words.ZOOM_CLOSE, words.PYTHON_CALL, words.SEARCH_CALL),
        *(words.CALL_CLOSE, "<tool_call>", "<tool_response>"),
    ]
    for text in calls:
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        assert token not in ids


def test_base_reads_crops_and_easy_cards_but_not_hard_ones(base, tokenizer):
    numbers = measure.measure(base, tokenizer, HEADERS[1], "val", 60)
    assert numbers["read_crop_hard"] > 0.85
    assert numbers["read_crop_after_scene_hard"] > 0.85
    assert numbers["read_small_view_easy"] > 0.6
    assert numbers["read_small_view_hard"] < 0.45
    assert numbers["read_missed_crop_hard"] < 0.35
    assert min(numbers["products_by_heart"], numbers["writes_queries"]) > 0.9
    assert min(numbers["codes_by_heart"], numbers["finds_in_text"]) > 0.8
    assert numbers["cell"] > 0.6 and numbers["window_hit_given_cell"] > 0.5


def test_pretraining_reproduces_its_first_losses():
    """Same seed, same pictures, same arithmetic: recorded on another machine to 2 %."""
    recorded = json.loads((BASE / "pretrain.json").read_text())
    torch.manual_seed(recorded["settings"]["seed"])
    fresh = model.build_model(build_tokenizer(*TOOLSETS))
    settings = pretrain.PretrainSettings(**{**recorded["settings"], "workers": 0})
    losses = pretrain.see(fresh, settings)
    first = [next(losses) for _ in range(3)]
    assert first == pytest.approx(recorded["first_losses"]["see"][:3], rel=0.02)
