"""Every family on a tiny random model of its classes: what docs/families.md says is proven."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import axpo
from axpo.algorithms.losses import TokenBatch
from axpo.chat.parsing import ParsedTurn
from axpo.config import LoraSettings, OptimizerSettings, RolloutSettings
from axpo.costs import memory
from axpo.engines.chat.engine import ChatEngine
from axpo.engines.chat.settings import Chat
from axpo.engines.scripted import ScriptedEngine
from axpo.engines.transformers import TransformersEngine
from axpo.errors import CheckpointError, ConfigError, ModelError
from axpo.models.families import PAGES, family_of
from axpo.models.families.chatml import ChatML
from axpo.models.hollow import fill, load_hollow
from axpo.models.loading import Checkpoint, load_checkpoint, load_processor
from axpo.models.lora import adapter_parameters, add_adapters, targeted_layers
from axpo.models.vision import encode_pictures
from axpo.rollout.agent import Agent
from axpo.rollout.paths import branch_path, start_path
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.base import IMAGE, Example
from axpo.tools import make_tools
from axpo.tools.base import Box, Observation, ToolContext, View
from axpo.tools.zoom import NAME, SPEC
from axpo.training.attention import tree_layout
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.training.pieces import training_passes
from axpo.training.policy import hidden_states, policy_logprobs, show
from axpo.training.probe import WeightProbe
from axpo.training.recomputation import recompute_layers
from tests.support.engine_contract import EngineParity
from tests.support.families import SMOLLM2, TURNS, family_checkpoint
from tests.support.packing import CLIP, packed
from tests.support.padded_oracle import (
    branching_group,
    demonstration_group,
    gradients,
    oracle_loss,
    trained_logprobs,
)
from tests.support.rollouts import GRADE, LIMITS, FakeTool
from tests.support.saved_bytes import SavedBytes
from tests.support.tiny import tiny_picture

KINDS = sorted(PAGES)
SOURCE = Path(axpo.__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    torch.set_num_threads(1)
    return family_checkpoint(request.param)


def test_nothing_outside_the_pages_names_a_family() -> None:
    """No class of one, no question by its name."""
    classes = {family_of(family_checkpoint(kind).model.config).architecture for kind in KINDS}
    names = "|".join(re.escape(cls.__name__) for cls in classes)
    asked = rf"(?:model_type|kind)\b.*[\"'](?:{'|'.join(KINDS)})[\"']"
    for file in SOURCE.rglob("*.py"):
        if SOURCE / "models" / "families" not in file.parents:
            found = re.findall(f"{names}|{asked}", file.read_text())
            assert not found, (file, found)


def test_the_page_in_the_docs_is_the_real_one() -> None:
    page = (SOURCE / "models" / "families" / "llama.py").read_text()
    assert f"```python\n{page}```" in (ROOT / "docs" / "families.md").read_text()


def test_packed_trees_are_padded_rows(checkpoint: Checkpoint) -> None:
    """Logprobs, loss and gradient of a forest, whole and in pieces, against a row per path."""
    groups = [
        branching_group(checkpoint, 1, "a"),
        demonstration_group(checkpoint, 2, "d"),
        branching_group(checkpoint, 3, "b"),
    ]
    if not checkpoint.processor.family.sees:  # they begin alike, which is computed once
        for group in groups:
            tokens = (*range(5, 25), *group.prompt.tokens)
            group.prompt = replace(group.prompt, tokens=tokens)
    forest, pixels = packed(checkpoint, groups)
    alone = sum(len(packed(checkpoint, [group])[0]) for group in groups)
    assert (len(forest) <= alone - 2 * 20) == (not checkpoint.processor.family.sees)
    expected = torch.cat(
        [x[2] for group in groups for x in trained_logprobs(checkpoint, group, padded=True)]
    )
    loss = oracle_loss(checkpoint, groups, CLIP, "question_mean", padded=True)
    slow = gradients(checkpoint, loss)

    logprobs = policy_logprobs(checkpoint, forest, pixels)
    assert (logprobs - expected).abs().max() < 1e-5
    found = _loss(forest, logprobs)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert (gradients(checkpoint, found) - slow).norm() / slow.norm() < 1e-5

    model = checkpoint.model
    for budget in (23, 60):
        model.zero_grad(set_to_none=True)
        for some in training_passes(checkpoint, forest, pixels, 1.0, budget):
            assert torch.allclose(some.logprobs, expected[some.trained], rtol=0, atol=1e-5)
            some.backward(_loss(forest, some.logprobs, some.trained))
        pieces = torch.cat(
            [
                torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                for p in model.parameters()
            ]
        )
        assert (pieces - slow).norm() / slow.norm() < 1e-5
    model.zero_grad(set_to_none=True)


def _loss(forest: PackedTree, logprobs: torch.Tensor, at: Any = slice(None)) -> torch.Tensor:
    batch = TokenBatch(
        logprobs, forest.old[at], None, forest.advantages[at], forest.weights[at],
        forest.likelihood[at],
    )  # fmt: skip
    return CLIP(batch)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_layers_change_nothing(kind: str) -> None:
    plain, again = family_checkpoint(kind), family_checkpoint(kind)
    recompute_layers(again.model)
    found = []
    for checkpoint in (plain, again):
        forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
        loss = policy_logprobs(checkpoint, forest, pixels).sum()
        found.append(gradients(checkpoint, loss))
    assert torch.equal(*found)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_trained_saved_and_resumed_to_the_bit(kind: str, lora: bool, tmp_path: Path) -> None:
    """What is saved is loaded by transformers' own class, and a run goes on from it."""

    def learner() -> LocalLearner:
        checkpoint = family_checkpoint(kind)
        if lora:
            add_adapters(checkpoint.model, LoraSettings(rank=4, alpha=8), "tiny", 0)
        return LocalLearner(checkpoint, None, OptimizerSettings(learning_rate=1e-2), 10)

    def step(some: LocalLearner) -> None:
        some.update([branching_group(some.checkpoint, some.updates)], Objective())

    one = learner()
    step(one)
    (tmp_path / "saved").mkdir()
    one.save(tmp_path / "saved")
    two = learner()
    two.load(tmp_path / "saved")
    step(one)
    step(two)
    for (name, a), b in zip(
        one.checkpoint.model.state_dict().items(),
        two.checkpoint.model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name

    folder = tmp_path / "model"
    one.checkpoint.save(folder)
    loaded = load_checkpoint(folder, banned=("<|im_start|>",) if kind in BLIND else ())
    architecture = json.loads((folder / "config.json").read_text())["architectures"]
    assert architecture == [type(one.checkpoint.model).__name__]
    theirs = loaded.processor.family.architecture.from_pretrained(folder).eval()
    tokens = torch.tensor([[5, 3, 8, 1, 9, 4]])
    with torch.no_grad():
        ours = one.checkpoint.model(input_ids=tokens, use_cache=False).logits
        assert (theirs(input_ids=tokens, use_cache=False).logits - ours).abs().max() < 1e-4
    group = branching_group(one.checkpoint, 4)
    found = [policy_logprobs(c, *packed(c, [group])) for c in (one.checkpoint, loaded)]
    assert (found[0] - found[1]).abs().max() < 1e-4
    if lora:
        layers = targeted_layers(family_checkpoint(kind).model, LoraSettings())
        assert len(layers) == 3 * 7
        assert len(adapter_parameters(one.checkpoint.model)) == 2 * len(layers)


def test_published_names_are_read_by_one_process_and_by_many(tmp_path: Path) -> None:
    """Qwen2.5-VL's files on the Hub name weights as an older class did."""
    checkpoint = family_checkpoint("qwen2_5_vl")
    checkpoint.save(tmp_path)
    checkpoint.model.save_pretrained(tmp_path, save_original_format=True)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {"visual.merger.mlp.0.weight", "model.norm.weight"} <= set(file.keys())
    published = load_file(tmp_path / "model.safetensors")
    head = published["model.embed_tokens.weight"].clone()  # as models have that tie it to nothing
    save_file(
        published | {"lm_head.weight": head}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    spread = load_hollow(tmp_path)
    fill(spread, "cpu", lambda weight: (weight, slice(None)))
    for loaded in (load_checkpoint(tmp_path), spread):
        for (name, a), b in zip(
            checkpoint.model.state_dict().items(),
            loaded.model.state_dict().values(),
            strict=True,
        ):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_output_layer_is_the_embedding_where_the_config_says_so(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    """Also where each process would read its part, and one reads all."""
    checkpoint = family_checkpoint(kind)
    model = checkpoint.model
    if not tied:
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    checkpoint.save(tmp_path)
    hollow = load_hollow(tmp_path)
    fill(hollow, "cpu", lambda weight: (weight, slice(None)))
    for loaded in (load_checkpoint(tmp_path), hollow):
        head, embedding = (
            part.weight for part in (loaded.model.lm_head, loaded.model.get_input_embeddings())
        )
        assert (head is embedding) == tied
        assert torch.equal(head, model.lm_head.weight)
        assert torch.equal(embedding, model.get_input_embeddings().weight)


def test_two_weights_where_the_config_has_one_are_not_lost(tmp_path: Path) -> None:
    """transformers keeps both; a model whose parts are read has room for one."""
    checkpoint = family_checkpoint("llama")
    model = checkpoint.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    checkpoint.save(tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).model.lm_head.weight, model.lm_head.weight)
    hollow = load_hollow(tmp_path)
    with pytest.raises(CheckpointError, match=r"ties .* hold two different ones: set \"tie_word"):
        fill(hollow, "cpu", lambda weight: (weight, slice(None)))


def test_estimates_are_what_autograd_keeps(checkpoint: Checkpoint) -> None:
    """Of text and of pictures."""
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    model, family = checkpoint.model, checkpoint.processor.family
    pictures = list(dict.fromkeys(forest.pictures))
    layout = tree_layout(forest.nodes)
    with SavedBytes(model.parameters()) as saved:
        features = encode_pictures(model, [pixels[d] for d in pictures])
        shown = show(checkpoint, forest, pictures, features)
        vision = saved.live
        hidden = hidden_states(checkpoint, forest, slice(None), shown, layout)
        text = saved.live - vision
    found = memory.text_activations(
        model.config.get_text_config(), tokens=len(forest), keys=len(forest), size=4,
        recompute=False, query_norm=family.query_norm,
    )  # fmt: skip
    assert found == pytest.approx(text, rel=0.05) and len(hidden) == len(forest)
    if not pictures:
        assert vision == 0
        return
    patches = sum(len(pixels[d].values) for d in pictures)
    found = memory.vision_activations(
        model.config.vision_config, patches=patches, size=4, recompute=False,
        gated=family.gated_vision,
    )  # fmt: skip
    assert found == pytest.approx(vision, rel=0.05)


class TestEngine(EngineParity):
    """The engine in this process, of every family but the reference, whose tests are its own."""

    @pytest.fixture(params=[kind for kind in KINDS if kind != "qwen3_vl"], autouse=True)
    def kind(self, request: pytest.FixtureRequest) -> None:
        self._kind = request.param

    def tiny(self, seed: int) -> Checkpoint:
        return family_checkpoint(self._kind, seed)

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> TransformersEngine:
        return TransformersEngine(checkpoint, slots, max_prefill_tokens=512)


# ------------------------------------------------------------------ conversations


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": [1, 2]}}\n</tool_call>'
BLIND = [kind for kind in KINDS if not family_checkpoint(kind).processor.family.sees]


async def _look(arguments: dict[str, Any], context: ToolContext) -> Observation:
    return Observation("seen <tool_call> é")


def _thinks(rendering: Rendering) -> bool:
    return "<think>" in rendering.tokenizer.get_vocab()


def _templated(rendering: Rendering, messages: list[dict[str, str]], **more: Any) -> str:
    return rendering.tokenizer.apply_chat_template(messages, tokenize=False, **more)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3_vl"])
def test_turns_are_those_of_the_own_template(kind: str) -> None:
    """A prompt, a turn that calls, its result, a turn that answers; a system turn of one's own."""
    processor = family_checkpoint(kind).processor
    tool = FakeTool(_look)
    for system in (None, "Be brief."):
        rendering = Rendering(processor, {"look": tool}, system)
        thought = "<think>\nHm.\n</think>\n\n" if _thinks(rendering) else ""
        shown, _ = rendering.prompt(Example("q", "What is <|im_end|> 1+1?", (), "2"), "p")
        text = rendering.decode(shown.tokens)
        ours = [{"role": "user", "content": "What is < |im_end|> 1+1?"}]
        head = text[: text.index("<|im_start|>user")]
        assert json.dumps(tool.spec) in head and (system or "") in head
        said = head.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
        ours.insert(0, {"role": "system", "content": said})
        assert text == _templated(rendering, ours, add_generation_prompt=True)

        turn = rendering.demonstrated(f"{thought}Let me look.\n{CALL}")
        assert turn is not None
        assert rendering.parse(turn).calls[0].arguments == {"at": [1, 2]}
        result, _ = rendering.observation(turn, [Observation("seen < tool_call>")], "o")
        last = rendering.demonstrated(f"{thought}two")
        assert last is not None and rendering.parse(last).answer == "two"
        whole = rendering.decode([*shown.tokens, *turn, *result.tokens, *last]) + "\n"
        ours += [
            {"role": "assistant", "content": f"{thought}Let me look.\n{CALL}"},
            {"role": "user", "content": "<tool_response>\nseen < tool_call>\n</tool_response>"},
            {"role": "assistant", "content": f"{thought}two"},
        ]
        assert whole == _templated(rendering, ours)
        # A turn that the policy did not close, and one that the environment answers.
        cut, _ = rendering.observation(turn[:-1], [Observation("seen < tool_call>")], "o")
        assert [*turn[:-1], *cut.tokens] == [*turn, *result.tokens]
        reply, _ = rendering.reply(Observation("more"), "e")
        assert rendering.decode(reply.tokens) == (
            f"\n<|im_start|>user\nmore<|im_end|>\n{rendering.decode(rendering._generation_prompt)}"
        )


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_template_that_knows_tools_writes_the_same(kind: str) -> None:
    """With its own messages of calls and results, two of which share a turn."""
    tool = FakeTool(_look)
    rendering = Rendering(family_checkpoint(kind).processor, {"look": tool})
    thought = "<think>\nHm.\n</think>\n\n" if _thinks(rendering) else ""
    shown, _ = rendering.prompt(Example("q", "Well?", (), "2"), "p")
    turn = rendering.demonstrated(f"{thought}So.\n{CALL}\n{CALL}")
    assert turn is not None
    results = [Observation("one"), Observation("two")]
    after, _ = rendering.observation(turn, results, "o")
    call = {"function": {"name": "look", "arguments": {"at": [1, 2]}}}
    ours: list[Any] = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": f"{thought}So.", "tool_calls": [call, call]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
    ]
    expected = _templated(rendering, ours, tools=[tool.spec], add_generation_prompt=True)
    assert rendering.decode([*shown.tokens, *turn, *after.tokens]) == expected


def test_pictures_in_turns_are_those_of_the_own_template() -> None:
    """In a question between its words, and in the result of a call behind them."""
    rendering = Rendering(family_checkpoint("qwen2_5_vl").processor, {"look": FakeTool(_look)})
    picture = tiny_picture(1, (64, 48))
    asked = Example("q", f"Here {IMAGE} what?", (picture,), "2")
    shown, pictures = rendering.prompt(asked, "p")
    assert len(pictures) == 1 and [span.length for span in shown.images] == [4 * 3]
    turn = rendering.demonstrated(f"So.\n{CALL}")
    assert turn is not None
    result, crops = rendering.observation(turn, [Observation("a", (View.whole(picture),))], "o")
    assert len(crops) == 1
    text = rendering.decode([*shown.tokens, *turn, *result.tokens])
    text = re.sub(r"(<\|image_pad\|>)+", r"\1", text)
    head = text[: text.index("<|im_start|>user")]
    system = head.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    assert system.startswith("You are a helpful assistant.\n\n# Tools")

    def said(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    result_parts = [said("<tool_response>\na"), {"type": "image"}, said("\n</tool_response>")]
    ours: list[Any] = [
        {"role": "system", "content": system},
        {"role": "user", "content": [said("Here "), {"type": "image"}, said(" what?")]},
        {"role": "assistant", "content": f"So.\n{CALL}"},
        {"role": "user", "content": result_parts},
    ]
    assert text == _templated(rendering, ours, add_generation_prompt=True)


def test_a_zoom_in_pixels_of_the_seen_picture() -> None:
    """A box in pixels of what the model sees is cut from the larger original."""
    processor = family_checkpoint("qwen2_5_vl").processor
    rendering = Rendering(processor, make_tools([NAME]))
    (tool,) = rendering.tools.values()
    assert "in pixels of the image" in json.dumps(tool.spec)
    picture = tiny_picture(1, (300, 100))
    across, down = processor.seen_size(picture)
    out = processor.image_processor(images=[picture], return_tensors="pt")
    _, rows, columns = out["image_grid_thw"][0].tolist()
    assert (across, down) == (columns * 8, rows * 8) != (300, 100)
    context = ToolContext((View.whole(picture),))

    def box(*corners: float) -> Box:
        arguments = {"bbox_2d": list(corners), "label": "x", "img_idx": 0}
        (view,) = asyncio.run(tool(arguments, context)).views
        return view.box

    assert box(0, 0, across, down) == (0, 0, 300, 100)
    assert box(0, 0, across // 2, down) == (0, 0, 150, 100)
    with pytest.raises(ModelError, match=rf"expected an area inside {across} x {down} pixels"):
        box(across + 1, 0, across + 9, down)
    with pytest.raises(ModelError, match=r"x1, y1, x2, y2\], numbers, in pixels of the image$"):
        box(0, 0, 9)
    relative = Rendering(family_checkpoint("qwen3_vl").processor, make_tools([NAME]))
    (same,) = relative.tools.values()
    assert same.spec == SPEC


def test_thinking_that_is_opened_or_sampled() -> None:
    """A hybrid model's opening tag is its own choice; a Thinking model's is the prompt's."""
    processor = family_checkpoint("qwen3").processor
    hybrid = Rendering(processor, {})
    assert not hybrid.thinking
    for text, answer in (
        ("<think>\na <tool_call>\n</think>\n\n4", "4"),
        ("5", "5"),
        ("<think>", ""),
    ):
        turn = hybrid.demonstrated(text)
        assert turn is not None and hybrid.parse(turn).answer == answer
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
    )
    thinking = Rendering(replace(processor, tokenizer=tokenizer), {})
    assert thinking.thinking
    prompt, _ = thinking.prompt(Example("q", "Well?", (), "2"), "p")
    assert thinking.decode(prompt.tokens).endswith("<|im_start|>assistant\n<think>\n")
    turn = thinking.demonstrated("a\n</think>\n\n4")
    assert turn is not None and thinking.parse(turn).answer == "4"


@pytest.mark.parametrize("kind", BLIND)
def test_a_model_without_eyes_is_told_at_the_start(kind: str) -> None:
    processor = family_checkpoint(kind).processor
    with pytest.raises(ConfigError, match=r"rollout\.tools: image_zoom_in_tool.*takes none"):
        Rendering(processor, make_tools(["image_zoom_in_tool"]))
    rendering = Rendering(processor, {})
    with pytest.raises(ConfigError, match="example q shows 1 pictures"):
        rendering.prompt(Example("q", "What?", (tiny_picture(1),), "2"), "p")
    seen = Observation("a plot", (View.whole(tiny_picture(1)),))
    assert rendering.visible(seen) == Observation("a plot\n(1 pictures, which you cannot see)")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen2_5_vl"])
def test_an_endpoint_s_replies_need_tags_that_are_tokens(kind: str, tmp_path: Path) -> None:
    settings = Chat(urls=("http://127.0.0.1:1/v1",), model="x")
    with pytest.raises(ConfigError, match=r"engine\.name: 'chat'.*no '</think>'.*families\.md"):
        ChatEngine(settings, family_checkpoint(kind).processor, tmp_path / "replies.sqlite")


@pytest.mark.parametrize("kind", BLIND)
def test_the_usual_ban_leaves_out_tags_that_are_text(kind: str, tmp_path: Path) -> None:
    family_checkpoint(kind).save(tmp_path)
    usual = RolloutSettings().banned
    processor = load_processor(tmp_path, banned=usual)
    known = processor.tokenizer.get_vocab()
    assert processor.banned == tuple(known[tag] for tag in usual if tag in known)
    assert len(processor.banned) == (3 if kind == "qwen3" else 1)
    with pytest.raises(CheckpointError, match="the tokenizer has no '<mine>'"):
        load_processor(tmp_path, banned=("<mine>",))


@pytest.mark.parametrize("kind", BLIND)
def test_servers_are_probed_with_text_alone(kind: str) -> None:
    rendering = Rendering(family_checkpoint(kind).processor, {})
    probe = WeightProbe(ScriptedEngine(lambda _: (1,)), rendering, dict, 1.0, lambda _: None)
    assert probe._request.pictures == () and probe._request.tokens


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3_vl"])
def test_a_rollout_calls_and_is_resampled_from_its_cut(kind: str) -> None:
    """The agent loop to an answer; a continuation from behind the opening tag keeps the call."""
    checkpoint = family_checkpoint(kind)
    rendering = Rendering(checkpoint.processor, {"look": FakeTool(_look)})
    tokens = [rendering.demonstrated(text) for text in (f"Hm. {CALL}", "7")]
    engine = ScriptedEngine(lambda request: tokens[len(engine.requests) - 1])
    agent = Agent(engine, rendering, rendering.tools, LIMITS, GRADE)
    group = new_group(rendering, Example("q", "How many?", (), "7"), "g")
    rollout = asyncio.run(agent.run(start_path(group), "g/r0", seed=0))
    group.rollouts = [rollout]
    (call,) = rollout.calls
    assert call.arguments == {"at": [1, 2]} and rollout.reward == 1.0
    prefix = rendering.decode(rollout.segments[0].tokens[: call.start + 1])
    assert prefix == "Hm. <tool_call>"

    branch = group.fork(rollout, call.start + 1)
    path = branch_path(group, branch, rendering)
    rest = rendering.encode('\n{"name": "look", "arguments": {"at": 3}}\n</tool_call><|im_end|>')
    tokens[:] = [rest, rendering.demonstrated("8")]
    engine.requests.clear()
    other = asyncio.run(agent.run(path, "g/c0", seed=0))
    assert other.calls[0].arguments == {"at": 3}
    assert (other.calls[0].start, other.answer) == (call.start, "8")


class TestSpelledTags:
    """Tags that are text, in a vocabulary whose tokens go over their ends."""

    @pytest.fixture(scope="class")
    def wire(self) -> ChatML:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [(">", "{"), (">", "<"), ("}", "<"), ("}", "</"), ("<", "/"), ("t", "ool"),
                  ("o", "ol"), ("o", "l"), ("\u0120", "<")]  # fmt: skip
        merges = [m for m in merges if m != ("}", "</")]
        vocabulary = [*alphabet, *dict.fromkeys("".join(m) for m in merges)]
        core = Tokenizer(models.BPE({w: i for i, w in enumerate(vocabulary)}, merges=merges))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in TURNS])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=SMOLLM2)
        return ChatML(tokenizer, tuple(tokenizer.convert_tokens_to_ids(TURNS[::2])))

    def parse(self, wire: ChatML, text: str, call_at: int | None = None) -> ParsedTurn:
        return wire.parse(wire._encode(text), call_at)

    def test_tokens_over_the_ends_of_tags(self, wire: ChatML) -> None:
        call = '<tool_call>{"name": "é", "arguments": {"a": "<b>"}}</tool_call>'
        text = f"so {call}{call}"
        ids = wire._encode(text)
        assert len(ids) < len(text.encode())  # some are merged
        found = wire.parse([*ids, wire.turn_end, 5], None)
        assert [(c.name, c.arguments) for c in found.calls] == [("é", {"a": "<b>"})] * 2
        first, second = found.calls
        assert wire._decode(ids[: first.start + 1]) == "so <tool_call>{"
        assert wire._decode(ids[: first.end]) == f"so {call}<"
        assert second.end == len(ids) and first.end <= second.start
        # From the cut, what follows may be anything; the call stays one.
        again = wire.parse(ids[: first.start + 1] + wire._encode("nothing"), first.start)
        assert [(c.start, c.error) for c in again.calls] == [
            (first.start, "the call is never closed")
        ]

    def test_what_is_no_call(self, wire: ChatML) -> None:
        assert self.parse(wire, "  just <tool_call words ").answer == "just <tool_call words"
        assert self.parse(wire, "").answer == ""
        (broken,) = self.parse(wire, "<tool_call>{nothing}</tool_call>").calls
        assert broken.name is None and "not JSON" in (broken.error or "")

    def test_other_turns_are_refused(self, wire: ChatML) -> None:
        tokenizer = copy.deepcopy(wire._tokenizer)
        tokenizer.chat_template = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
        with pytest.raises(CheckpointError, match=r"expected ChatML's turns"):
            ChatML(tokenizer, ())
