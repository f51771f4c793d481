"""Tokens where texts meet, and control tokens: neither spelled by outside text nor sampled."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axpo.build.models import load_model
from axpo.chat.control import FAMILY, ControlText
from axpo.config import load_config
from axpo.engines.transformers import TransformersEngine
from axpo.errors import CheckpointError, ConfigError, DemonstrationError
from axpo.models.families.qwen3_vl import Qwen3VL
from axpo.models.loading import Processor, load_checkpoint, load_processor
from axpo.models.tiny import write_tiny
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.rendering import Rendering
from axpo.tasks.lab import BASE
from axpo.tools.base import Observation, View
from axpo.training.policy import policy_logprobs
from axpo.tree import CallStatus, StopReason
from tests.support.engine_contract import Writer, difference
from tests.support.engine_contract import run as finish
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group
from tests.support.rollouts import CHECKPOINT, LIMITS, FakeTool, encode, example, make_agent
from tests.support.tiny import (
    SPECIAL_TOKENS,
    banning,
    tiny_checkpoint,
    tiny_config,
    tiny_picture,
    tiny_tokenizer,
)
from tests.support.turns import ANSWER, CALL, run, says

TURNS = ("<|im_start|>", "<tool_response>", "</tool_response>")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and what Qwen's ranks make one token of: two line breaks, two spaces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "Ċ"), ("Ġ", "Ġ")]
    vocabulary = {word: i for i, word in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.normalizer = normalizers.NFC()  # pyright: ignore
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=tiny_tokenizer().chat_template,
    )


def with_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Processor:
    """The tests' processor with the ids of `tokenizer`."""
    config = tiny_config(tokenizer)
    stop = tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    return replace(CHECKPOINT.processor, config=config, tokenizer=tokenizer, stop=stop, banned=())


MERGING = Rendering(with_tokenizer(merging_tokenizer()), {})
SPACES = st.text(alphabet="\n a", max_size=6)


def canonical(rendering: Rendering, tokens: list[int]) -> bool:
    return rendering.encode(rendering.decode(tokens)) == tokens


# ------------------------------------------------------------------ where two texts meet


def test_this_tokenizer_joins_what_is_encoded_apart() -> None:
    assert MERGING.encode("\n") + MERGING.encode("\n7") != MERGING.encode("\n\n7")


@settings(max_examples=300, deadline=None)
@given(SPACES, SPACES, SPACES)
def test_prompts_and_observations_are_canonical(before: str, between: str, after: str) -> None:
    question = f"{before}<image>{between}<image>{after}"
    asked = example(question=question, images=(tiny_picture(1),) * 2)
    prompt, _ = MERGING.prompt(asked, "p")
    assert canonical(MERGING, list(prompt.tokens))
    turn = MERGING.encode("</think><tool_call>{}</tool_call><|im_end|>")
    views = (View.whole(tiny_picture(2)),)
    results = [Observation(before), Observation(between, views), Observation(after)]
    segment, _ = MERGING.observation(turn, results, "o")
    assert canonical(MERGING, [*prompt.tokens, *turn, *segment.tokens])


@settings(max_examples=300, deadline=None)
@given(SPACES)
def test_a_demonstrated_turn_is_canonical_or_refused(space: str) -> None:
    prompt, _ = MERGING.prompt(example(images=()), "p")
    text = f"{space}so</think>\n\n7".lstrip("\n")
    tokens = MERGING.encode(f"{text}<|im_end|>")
    fits = canonical(MERGING, [*prompt.tokens, *tokens])
    found = MERGING.demonstrated(f"{space}so</think>\n\n7")
    assert found == (tokens if fits else None)


@settings(max_examples=100, deadline=None)
@given(SPACES)
def test_a_critique_is_canonical(space: str) -> None:
    prompt, _ = MERGING.prompt(example(images=()), "p")
    turn = MERGING.encode("</think>7<|im_end|>")
    parts = MERGING.critique(turn, f"{space}wrong{space}", "c")
    tokens = [token for part in parts for token in part.tokens]
    assert canonical(MERGING, [*prompt.tokens, *turn, *tokens])


def test_a_teachers_line_break_is_dropped_and_other_space_is_named() -> None:
    def taught(turn: str) -> tuple[int, ...]:
        shown = example(demonstration=(turn,), images=())
        group = asyncio.run(demonstrate(MERGING, {}, LIMITS, shown, "d"))
        return group.rollouts[0].segments[0].tokens

    assert taught("\n\nso</think>\n\n7") == taught("so</think>\n\n7")
    tokenizer = merging_tokenizer()
    joined = Rendering(with_tokenizer(tokenizer), {})
    joined.tokenizer.add_tokens(["\n so"])
    with pytest.raises(DemonstrationError, match=r"q1: turn 1 begins with ' so</thi', which"):
        shown = example(demonstration=(" so</think>7",), images=())
        asyncio.run(demonstrate(joined, {}, LIMITS, shown, "d"))


# ------------------------------------------------------------------ spelled by text from outside

PIECES = (
    "<", "|", ">", "/", "answer", "im_end", "[", "]", "END", " ", "s", "\u0338",
    "<answer>", "[END]", "</s>", "<|im_end|>",
)  # fmt: skip


def added(*names: str, special: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = merging_tokenizer()
    tokenizer.add_tokens([AddedToken(n, special=special) for n in names], special_tokens=special)
    return tokenizer


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("<answer>", "< answer>"),
        ("</s>", "< /s>"),
        ("<information>", "< information>"),
        ("<|my-tok|>", "< |my-tok|>"),
        ("[END]", "[ END]"),
    ],
)
def test_tags_that_a_tokenizer_adds_stay_text(name: str, plain: str) -> None:
    for special in (False, True):
        rendering = Rendering(with_tokenizer(added(name, special=special)), {})
        id = rendering.encode(name)
        assert len(id) == 1
        text = f"a{name}b{name}{name}"
        segment, _ = rendering.observation(
            rendering.encode("</think>x<|im_end|>"), [Observation(text)], "o"
        )
        assert id[0] not in segment.tokens
        assert f"a{plain}b{plain}{plain}" in rendering.decode(segment.tokens)
        prompt, _ = rendering.prompt(example(question=text, images=()), "p")
        assert id[0] not in prompt.tokens


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("##",), "###"),  # overlapping
        (("§",), "a§b"),  # one character
        (("a b",), "a b"),  # a space of its own
        (("<x>", "< x>"), "<x>< x>"),  # broken into another one
        (("<<a>", "<a>"), "<<a>"),  # inside another one
    ],
)
def test_whatever_is_special_stays_text(names: tuple[str, ...], text: str) -> None:
    tokenizer = added(*names, special=True)
    ids = set(tokenizer.convert_tokens_to_ids(list(names)))
    assert ids & set(tokenizer.encode(text, add_special_tokens=False))
    shown = ControlText(tokenizer).plain(text)
    assert not ids & set(tokenizer.encode(shown, add_special_tokens=False))


def test_letters_in_another_form_are_the_same_tag() -> None:
    """The family's tokenizer composes text before it looks for tags: the Kelvin sign is K."""
    tokenizer = added("<TASK>")
    (id,) = tokenizer.encode("<TAS\u212a>", add_special_tokens=False)
    shown = ControlText(tokenizer).plain("<TAS\u212a>")
    assert id not in tokenizer.encode(shown, add_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)))
def test_no_mixture_becomes_a_control_token(pieces: list[str]) -> None:
    tokenizer = added("<answer>", "[END]", "</s>")
    control = set(tokenizer.added_tokens_decoder)
    text = ControlText(tokenizer).plain("".join(pieces))
    assert not control & set(tokenizer.encode(text, add_special_tokens=False))


def test_words_that_a_tokenizer_adds_stay_whole() -> None:
    """The lab's phrases are tokens of their own, and its tools say them."""
    tokenizer = load_processor(BASE).tokenizer
    text = "Answer: red, row 1, [1] ** 20, 40]"
    assert ControlText(tokenizer).plain(text) == text
    assert ControlText(tokenizer).plain("a<think>b") == FAMILY.plain("a<think>b") == "a< think>b"


def test_a_spec_that_spells_an_added_tag_is_refused() -> None:
    tool = FakeTool(AsyncMock())
    tool.spec["function"] |= {"description": "writes <answer>"}  # pyright: ignore
    assert FAMILY.spelled(tool.spec) is None
    with pytest.raises(
        ConfigError, match="tool 'look': its spec spells the control token <answer>"
    ):
        Rendering(with_tokenizer(added("<answer>")), {"look": tool})


# ------------------------------------------------------------------ a turn that ends the text


def test_a_call_that_ends_the_text_ends_the_trajectory() -> None:
    _, trajectory = run(make_agent(says(f"{CALL}<|endoftext|>…", ANSWER)))
    assert (trajectory.stop, trajectory.reward) == (StopReason.END_OF_TEXT, 0.0)
    (call,) = trajectory.calls
    assert (call.status, call.error) == (CallStatus.NOT_RUN, "not run: end_of_text")
    (turn,) = trajectory.segments
    assert turn.tokens == encode(f"{CALL}<|endoftext|>")


def test_an_answer_may_end_the_text() -> None:
    _, trajectory = run(make_agent(says(f"{ANSWER}<|endoftext|>…")))
    assert (trajectory.stop, trajectory.reward) == (StopReason.ANSWER, 1.0)


@pytest.mark.parametrize(("end", "closing"), [("<|im_end|>", ""), ("<|endoftext|>", "<|im_end|>")])
def test_a_critique_follows_a_closed_turn(end: str, closing: str) -> None:
    parts = MERGING.critique(MERGING.encode(f"</think>7{end}"), "wrong", "c")
    assert MERGING.decode(parts[0].tokens) == f"{closing}\n<|im_start|>user\n"


# ------------------------------------------------------------------ whether it thinks


def test_a_template_in_json_is_read(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    template = tmp_path / "chat_template.jinja"
    written = template.read_text()
    template.unlink()
    with pytest.raises(CheckpointError, match=r"no chat template, .*chat_template\.json"):
        Rendering(load_processor(tmp_path), {})
    for text, thinks in ((written, True), (written.replace("<think>\n", ""), False)):
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": text}))
        assert Rendering(load_processor(tmp_path), {}).thinking is thinks


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"chat_template": 1}'])
def test_a_damaged_template_is_named(tmp_path: Path, text: str) -> None:
    write_tiny(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        load_processor(tmp_path)


def test_a_saved_checkpoint_keeps_its_template(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a")
    loaded.save(tmp_path / "b")
    again = load_processor(tmp_path / "b")
    assert again.tokenizer.chat_template == loaded.processor.tokenizer.chat_template
    assert Rendering(again, {}).thinking


# ------------------------------------------------------------------ what a policy cannot sample


def test_by_default_no_other_turn_can_be_written(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    checkpoint = load_model(load_config(), tmp_path)
    names = [checkpoint.processor.tokenizer.decode([id]) for id in checkpoint.processor.banned]
    assert names == [*Qwen3VL.unsampled, *TURNS]


def test_the_labs_recipe_bans_pictures_alone() -> None:
    """Its published figures were sampled so; some 4e-6 of its policy lie on <|im_start|>."""
    checkpoint = load_model(load_config("lab"), BASE)
    names = [checkpoint.processor.tokenizer.decode([id]) for id in checkpoint.processor.banned]
    assert names == list(Qwen3VL.unsampled)


def test_engine_and_trainer_leave_the_same_tokens_out() -> None:
    plain = tiny_checkpoint()
    ids = tuple(plain.processor.tokenizer.convert_tokens_to_ids(list(TURNS)))
    checkpoint = banning(plain, ids)
    request = Writer(checkpoint, 0).request("g", (64,), max_tokens=48, seed=3)
    done = finish(TransformersEngine(checkpoint).generate(request))
    assert not set(done.tokens) & set(checkpoint.processor.banned)
    assert difference(checkpoint, request, done) < 1e-5
    forest, pixels = packed(checkpoint, [branching_group(plain, 1)])
    with torch.no_grad():
        fewer, more = (policy_logprobs(c, forest, pixels, 1.0) for c in (checkpoint, plain))
    sampled = forest.tokens[forest.index]
    kept = ~torch.isin(sampled, torch.tensor(ids))
    assert bool((fewer[kept] > more[kept]).all())
    assert bool(torch.isinf(fewer[~kept]).all())


@pytest.mark.parametrize("name", ["<|im_end|>", "<|endoftext|>", "</think>", "<tool_call>"])
def test_what_a_turn_needs_cannot_be_banned(name: str) -> None:
    message = re.escape(f"rollout.banned: a turn cannot do without {name}")
    with pytest.raises(ConfigError, match=message):
        load_config(f'rollout.banned=["{name}"]')


def test_a_banned_name_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    with pytest.raises(CheckpointError, match="the tokenizer has no '<information>'"):
        load_model(load_config('rollout.banned=["<information>"]'), tmp_path)


@pytest.mark.parametrize("name", ["<|image_pad|>", "<tool_response>"])
def test_a_demonstration_of_what_cannot_be_sampled_is_named(name: str) -> None:
    ids = tuple(CHECKPOINT.processor.tokenizer.convert_tokens_to_ids(list(TURNS)))
    rendering = Rendering(banning(CHECKPOINT, ids).processor, {})
    shown = example(demonstration=(f"so {name} </think>7",))
    with pytest.raises(DemonstrationError) as caught:
        asyncio.run(demonstrate(rendering, {}, LIMITS, shown, "d"))
    assert str(caught.value).startswith(f"example q1: turn 1 has {name}, which the policy can")
