"""The card that a recipe names: its sum line by line, the servers' share, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from axpo.build import preflight
from axpo.build.preflight import check_sampling
from axpo.config import Config, load_config, parse_config
from axpo.costs.account import Account, account, fitting_budget
from axpo.costs.estimate import estimate
from axpo.costs.operations import REFERENCE, step_operations
from axpo.costs.sizes import Loop, assumed_prompt, check_positions
from axpo.engines.vllm.share import Servers
from axpo.errors import CheckpointError, ConfigError, MemoryWarning
from axpo.models import card
from axpo.models.card import Card, recipe_card
from axpo.models.shapes import find_shapes
from axpo.models.tiny import write_tiny
from axpo.report.costs import memory_lines, servers_text
from axpo.tasks.lab import BASE
from axpo.tree import ImageSpan, Origin, Segment
from tests.support.judge_server import stand_in
from tests.support.recipes import REAL, given

PAGE = Path(__file__).parents[2] / "docs" / "vllm.md"
# hidden, MLP, layers, heads, tied; depth, width, MLP, DeepStack of config.json of
# Qwen/Qwen3-VL-{2B,4B,8B}-Thinking; parameters as the Hub counts their safetensors files.
PUBLISHED = {
    "2b": (2048, 6144, 28, 16, True, 24, 1024, 4096, (5, 11, 17), 2_127_532_032),
    "4b": (2560, 9728, 36, 32, True, 24, 1024, 4096, (5, 11, 17), 4_437_815_808),
    "8b": (4096, 12288, 36, 32, False, 27, 1152, 4304, (8, 16, 24), 8_767_123_696),
}


def by_hand(name: str) -> tuple[int, int]:
    """Parameters of the text model (with its head) and of the vision tower, by formula."""
    h, i, layers, heads, tied, depth, w, m, deep, _ = PUBLISHED[name]
    attention = h * 128 * (2 * heads + 2 * 8) + 2 * 128
    text = (1 if tied else 2) * 151936 * h + layers * (attention + 3 * h * i + 2 * h) + h
    block = (w * 3 * w + 3 * w) + (w * w + w) + (w * m + m) + (m * w + w) + 4 * w
    mergers = (1 + len(deep)) * ((4 * w) ** 2 + 4 * w + 4 * w * h + h) + 2 * w + len(deep) * 8 * w
    patches = 3 * 2 * 16 * 16 * w + w + 2304 * w
    return text, depth * block + mergers + patches


def real(name: str, stage: str = "axpo", *overrides: str) -> Loop:
    """A shipped recipe with its model's shapes, as a machine without either has them."""
    config = load_config(*given(f"{name}/{stage}"), *overrides)
    return Loop(config, "sft" if stage == "sft" else "rl", find_shapes(config.model.path).model)


def reckon(name: str, stage: str = "axpo", *overrides: str) -> Account:
    loop = real(name, stage, *overrides)
    return account(loop, assumed_prompt(loop), "cpu")


def budget(tokens: int) -> str:
    return f"rl.optimizer.max_tokens_per_micro_batch={tokens}"


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shipped_shapes_are_the_published_ones(name: str):
    path = real(name).config.model.path
    found = find_shapes(path)
    h, i, layers, heads, tied, depth, w, m, deep, parameters = PUBLISHED[name]
    text, vision = found.model.config.text_config, found.model.config.vision_config
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (h, i, layers)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (heads, 8, 128)
    assert (text.vocab_size, text.max_position_embeddings) == (151936, 262144)
    assert found.model.config.tie_word_embeddings is tied
    assert (vision.depth, vision.hidden_size, vision.intermediate_size) == (depth, w, m)
    assert (vision.out_hidden_size, tuple(vision.deepstack_visual_indexes)) == (h, deep)
    assert sum(by_hand(name)) == parameters
    assert sum(p.numel() for p in found.model.parameters()) == parameters
    assert all(p.is_meta for p in found.model.parameters())
    counted = reckon(name).found.counts
    assert (counted.text, counted.vision) == by_hand(name)
    assert found.processor is None
    assert path in found.missing and f"published qwen3-vl-{name}" in found.missing


def test_a_checkpoint_that_is_there_has_its_own_shapes(tmp_path: Path):
    folder = tmp_path / "qwen3-vl-8b"  # its name would say another model
    made = write_tiny(folder)
    count = sum(p.numel() for p in made.model.parameters())
    found = find_shapes(str(folder))
    assert found.processor is not None and not found.missing
    assert sum(p.numel() for p in found.model.parameters()) == count
    for file in folder.glob("tokenizer*"):
        file.unlink()
    found = find_shapes(str(folder))
    assert found.processor is None
    assert str(folder) in found.missing and "published" not in found.missing
    assert sum(p.numel() for p in found.model.parameters()) == count


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Someone/Else-VL-7B", ["`hf download Someone/Else-VL-7B`", "qwen3-vl-2b, qwen3-vl-4b"]),
        ("Qwen/Qwen3-VL-30B-A3B-Thinking", ["hf download", "Only the sizes of"]),
        ("runs/mine", ["there is no folder runs/mine", "train or copy it there"]),
    ],
)
def test_an_unknown_model_that_is_not_here_says_what_to_do(path: str, words: list[str]):
    with pytest.raises(CheckpointError) as error:
        find_shapes(path)
    for word in words:
        assert word in str(error.value)


def test_nothing_is_downloaded_for_shapes(monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, object]] = []

    def config(path: str, **options: object) -> None:
        asked.append(options)
        raise OSError("not here")

    monkeypatch.setattr("axpo.models.loading.AutoConfig.from_pretrained", config)
    find_shapes("Qwen/Qwen3-VL-2B-Thinking")
    assert asked and all(options == {"local_files_only": True} for options in asked)


# ------------------------------------------------------------------ the sum


def test_the_sum_of_the_2b_recipe_by_hand():
    told = reckon("2b")
    p = 2_127_532_032
    tokens, prefix, prompt = 16_384, 8_192, 16_384  # a pass, a first turn, max_length - max_tokens
    state = {
        "weights": 2 * p,
        "float32 masters": 4 * p,
        "gradients": 4 * p,
        "AdamW's moments": 8 * p,
        "reference": 2 * p,
    }
    assert told.found.parts == state
    token = 28 * 8 * 128 * 2 * 2  # layers, heads, width, keys and values, bytes
    above = prompt + prefix  # what a piece looks back on
    trunk = prompt + 2 * prefix  # and its own prefix, which a piece after it looked back on
    # Leaves and their gradients, and the keys and values that the piece makes.
    keys_values = (2 * trunk + tokens) * token
    assert told.found.trunk_tokens == trunk
    assert told.found.trunk == keys_values
    # A picture of 15,360 tokens; 8 rollouts and 32 continuations, each with 2 crops of 1,024;
    # four layers of them, in bfloat16, and their gradients.
    shown = (15_360 + 40 * 2 * 1024) * 2048 * 4 * 2
    assert told.found.features == 2 * shown
    norms, heads = 2 * (2 * 2048 * 2 + 4), (2048 + 1024) * 2 + (16 + 8) * 4
    layer = tokens * (norms + heads + 2 * 2048 * 2 + 16 * 4 + 2 * 6144 * 2)
    copies = 2 * (above + tokens) * 1024 * 2
    inputs, norm = 28 * tokens * 2048 * 2, tokens * (2048 * 2 + 4)
    assert told.found.activations == layer + copies + inputs + norm
    assert told.found.logits == 2 * 2**26 * 4
    assert told.taken == round(0.24 * 80e9)
    tower = tokens * 4 * 2 * (1536 + 24 * 1024 + (11 * 1024 + 2 * 4096) + 4 * 4 * 1024)
    assert told.found.pictures == tower
    assert tower < keys_values + layer + copies + inputs + norm + told.found.logits
    lines = dict(memory_lines(told))
    assert lines["state"] == "42.6 GB" and lines["weights"] == "4.3 GB"
    assert lines["share of the vLLM server started beside"] == "19.2 GB"
    assert lines["in all"] == f"{told.total / 1e9:.1f} GB"
    assert lines["there are 80.0 GB (model.memory_gb)"] == "fits"
    assert told.total == sum(
        (20 * p, keys_values, 2 * shown, layer, copies, inputs, norm, 2 * 2**28, told.taken)
    )


@pytest.mark.parametrize("recipe", REAL)
def test_every_recipe_fits_the_card_that_it_names(recipe: str):
    told = reckon(*recipe.split("/"))
    assert told.card.named and told.card.memory == 80 * 10**9
    assert not told.refusal and not told.exceeds
    assert (told.servers is None) == recipe.endswith("/sft")
    if told.servers is not None:
        # Less 4 GB for activations and CUDA graphs, two paths at their limits.
        room = told.servers.room - 4 * 10**9 // told.servers.token
        assert room > 2 * told.found.sizes.path


def test_what_fitted_before_and_cannot_fit_is_refused():
    """The 4B recipe with all weights, as it was; one card is too small even without servers."""
    whole = "model={path='runs/qwen3-vl-4b/sft', dtype='bfloat16', memory_gb=80}"
    told = reckon("4b", "axpo", whole)
    assert told.found.weights == 20 * 4_437_815_808  # 88.8 GB
    assert told.refusal.startswith("model: every update needs 88.8 GB whatever is sampled (weights")
    assert "AdamW's moments 35.5 GB" in told.refusal
    assert "there are 80.0 GB (model.memory_gb), of which servers take 48.0 GB" in told.refusal
    assert "train adapters (model.lora)" in told.refusal
    lines = dict(memory_lines(told))
    assert lines["there are 80.0 GB (model.memory_gb)"] == "cannot fit"
    alone = reckon("4b", "axpo", whole, "engine.arguments=['--gpu-memory-utilization=0.2']")
    assert "88.8 GB" in alone.refusal
    # A card of 141 GB holds it (docs/vllm.md).
    large = whole.replace("80", "141, gradient_checkpointing=true")
    share = "engine.arguments=['--gpu-memory-utilization=0.12']"
    told = reckon("4b", "axpo", large, share)
    assert not told.refusal and not told.exceeds


@pytest.mark.parametrize("more", [[], ["model.gradient_checkpointing=false"]])
def test_a_number_of_tokens_that_fits_is_found_by_halving(more: list[str]):
    loop = real("2b", "axpo", budget(131072), *more)
    prompt = assumed_prompt(loop)
    told = account(loop, prompt, "cpu")
    assert told.exceeds and not told.refusal
    fits = fitting_budget(told, prompt)
    assert fits == (1024 if more else 16384)
    with pytest.warns(MemoryWarning, match=rf"= 131072 bounds activations \({fits} would fit\)"):
        preflight._warn(told, prompt, "cpu")
    assert not reckon("2b", "axpo", budget(fits), *more).exceeds
    assert reckon("2b", "axpo", budget(2 * fits), *more).exceeds
    small = replace(told, card=replace(told.card, memory=told.found.weights + told.taken))
    assert fitting_budget(small, prompt) is None


def test_the_servers_share_is_subtracted():
    """2B as it was passed an 80 GB card without a word: 68 GB beside a server of 28."""
    before = "engine.arguments=['--gpu-memory-utilization=0.35']"
    told = reckon("2b", "axpo", before, "tools.limits={}")
    assert told.taken == 28 * 10**9
    assert told.found.total < 80e9 < told.total
    assert told.exceeds and not told.refusal
    # With half of the card for the server the trainer's state alone does not fit.
    told = reckon("2b", "axpo", "engine.arguments=['--gpu-memory-utilization=0.5']")
    assert "42.6 GB" in told.refusal and "servers take 40.0 GB" in told.refusal
    # vLLM's own default leaves nothing.
    assert reckon("8b", "axpo", "engine.arguments=[]").taken == round(0.92 * 80e9)
    # Servers that run elsewhere take nothing, and SFT starts none.
    urls = "engine={name='vllm',urls=['http://127.0.0.1:1']}"
    assert reckon("2b", "axpo", urls).servers is None
    sft = replace(real("2b"), kind="sft")
    assert account(sft, assumed_prompt(sft), "cpu").servers is None


JUDGE = "judge={{model='j', record='r', vllm={{python='p', share=0.3{}}}}}"


def test_the_judge_s_server_takes_its_share_of_the_same_card():
    """Sampling servers take 19.2 GB, the judge's 24 GB; the state of 42.6 GB does not fit then."""
    told = reckon("2b", "axpo", JUDGE.format(""))
    assert told.judge == 24 * 10**9
    assert told.taken == round(0.24 * 80e9) + told.judge
    assert "which servers take 43.2 GB" in told.refusal and "judge.vllm.share" in told.refusal
    lines = dict(memory_lines(told))
    assert lines["share of the judge's vLLM server started beside"] == "24.0 GB"
    assert lines["share of the vLLM server started beside"] == "19.2 GB"
    assert reckon("2b", "sft", JUDGE.format("")).judge == 0
    elsewhere = reckon("2b", "axpo", JUDGE.format(", cards='1'"))
    assert elsewhere.judge == 0 and not elsewhere.refusal


# ------------------------------------------------------------------ servers

WHOLE = Card(80 * 10**9, 80 * 10**9, gpu=True, named=True)


def beside(*arguments: str, device: str = "cuda", servers: int = 1, **more: object):
    vllm = {"python": "p", "arguments": arguments, "servers": servers, "max_length": 32768, **more}
    values = {"model": {"dtype": "bfloat16"}, "engine": {"name": "vllm", **vllm}}
    model = find_shapes("qwen3-vl-8b").model
    return parse_config(values).engine.taken(model, "bfloat16", WHOLE, device)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpu-memory-utilization=0.4",),
        ("--gpu-memory-utilization", "0.4"),
        ("--gpu_memory_utilization=0.4", "--enforce-eager"),
        ("--gpu-memory-utilization=0.9", "--max-num-seqs", "4", "--gpu-memory-utilization=0.4"),
    ],
)
def test_the_share_is_read_as_vllm_reads_it(arguments: tuple[str, ...]):
    weights, token = 2 * 8_767_123_696, 36 * 8 * 128 * 2 * 2
    found = beside(*arguments)
    assert found == Servers("vLLM server", 1, 32 * 10**9, weights, token)
    assert found is not None and found.room == (32 * 10**9 - weights) // token


def test_several_cards_and_several_servers():
    weights, token = 2 * 8_767_123_696, 36 * 8 * 128 * 2 * 2
    half = "--gpu-memory-utilization=0.2"
    # Two cards of one server hold half of it each; the trainer is on the first.
    found = beside(half, "-tp", "2")
    assert found == Servers("vLLM server", 1, 16 * 10**9, weights // 2, token // 2)
    # Past the servers' cards the trainer is alone.
    assert beside("--gpu-memory-utilization=0.9", device="cuda:1") is None
    assert beside(half, "--tensor-parallel-size=2", device="cuda:1") == found
    assert beside(half, "-tp=2", "-pp=2", device="cuda:3") is not None
    # All servers start on the first card.
    two = beside("--gpu-memory-utilization=0.4", servers=2)
    assert two is not None and two.taken == 64 * 10**9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-memory-utilization=0.2"], ["16.0 GB", "weights take 17.5 GB", "more than 0.28"]),
        # 17.53 GB of weights and 4.83 of one path are 0.2796 of the card.
        (["--gpu-memory-utilization=0.279"], ["max_length = 32768 tokens 4.8 GB"]),
        (["--gpu-memory-utilization=1.2"], ["above 0 and up to 1"]),
        (["--gpu-memory-utilization=half"], ["invalid float value: 'half'"]),
    ],
)
def test_a_share_too_small_for_itself_is_refused(arguments: list[str], words: list[str]):
    with pytest.raises(ConfigError, match=r"^engine\.arguments: ") as error:
        beside(*arguments)
    for word in words:
        assert word in str(error.value)
    assert beside("--gpu-memory-utilization=0.28") is not None


def test_servers_on_a_cpu_take_main_memory(monkeypatch: pytest.MonkeyPatch):
    values = {"engine": {"name": "vllm", "python": "p", "servers": 2}}
    model, main = find_shapes("qwen3-vl-2b").model, Card(10**10, 10**10, gpu=False)
    config = parse_config(values)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = config.engine.taken(model, "float32", main, "cpu")
    assert found is not None and found.taken == 2 * (4 * 2_127_532_032 + 2**30)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    found = config.engine.taken(model, "float32", main, "cpu")
    assert found is not None and found.share == 4 * 2_127_532_032 + 3 * 2**30


def test_how_many_rollouts_run_at_once_is_said():
    told = reckon("8b")
    assert told.servers is not None
    # 0.44 of the card less the weights, at 147,456 bytes a token: 3 paths of 32,768.
    room = (round(0.44 * 80e9) - 2 * 8_767_123_696) // 147_456
    assert told.servers.room == room and told.at_once == room // 32_768 == 3
    text = servers_text(reckon("8b", "axpo", "engine.slots=16"))
    assert f"at most {room:,} tokens of KV cache" in text
    assert "3 rollouts of 32,768 tokens fit at once" in text
    assert "16 are let in (engine.slots), the others of a step's 1,280 wait" in text
    assert reckon("8b", "axpo", "engine={slots=200}").at_once == 200


# ------------------------------------------------------------------ which card


def test_a_named_card_is_priced_on_every_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(card, "main_memory", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * 10**9, 9 * 10**9))
    settings = load_config("model.memory_gb=24.5").model
    for device in ("cpu", "cuda:0"):
        assert recipe_card(settings, device) == Card(245 * 10**8, 245 * 10**8, True, named=True)
    settings = Config().model
    assert recipe_card(settings, "cpu") == Card(10**9, 10**9, gpu=False)
    assert recipe_card(settings, "cuda:0") == Card(5 * 10**9, 9 * 10**9, gpu=True)


def test_a_smaller_card_than_the_recipes_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (39 * 10**9, 40 * 10**9))
    told = reckon("2b")
    with pytest.warns(MemoryWarning, match=r"a card of 80\.0 GB \(model\.memory_gb\), 39\.0 GB"):
        preflight._warn(told, assumed_prompt(told.loop), "cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (84 * 10**9, 85 * 10**9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preflight._warn(told, assumed_prompt(told.loop), "cuda:0")


def test_sampling_alone_is_checked_as_well(tmp_path: Path):
    """`axpo eval` and `axpo diagnose` hold the model beside the servers."""
    made = write_tiny(tmp_path)
    size = 4 * sum(p.numel() for p in made.model.parameters())

    def config(share: float, memory: float, load: bool = True) -> Config:
        vllm = {"python": "p", "max_length": 64, "arguments": [f"--gpu-memory-utilization={share}"]}
        return parse_config(
            {
                "model": {"memory_gb": memory / 1e9},
                "rollout": {"max_tokens": 63},
                "engine": {"name": "vllm", **vllm},
                "eval": {"load": load},
            }
        )

    check_sampling(config(0.6, 3 * size), tmp_path)
    with pytest.raises(ConfigError, match=r"servers take .* this process .* for the model"):
        check_sampling(config(0.7, 3 * size), tmp_path)
    check_sampling(config(0.7, 3 * size, load=False), tmp_path)
    with pytest.raises(ConfigError, match="a server has"):
        check_sampling(config(0.3, 3 * size), tmp_path)
    # The judge's server alone: the engine samples in this process.
    judge = {"model": "j", "record": "r", "vllm": {"python": stand_in(tmp_path), "share": 0.7}}
    values = {"model": {"memory_gb": 3 * size / 1e9}, "judge": judge}
    with pytest.raises(ConfigError, match=r"lower .*judge\.vllm\.share"):
        check_sampling(parse_config(values), tmp_path)
    judge["vllm"]["share"] = 0.6
    check_sampling(parse_config(values), tmp_path)


def test_prompts_that_nobody_has_seen():
    loop = real("2b")
    prompt = assumed_prompt(loop)
    assert (len(prompt), prompt.images[0].length) == (32768 - 16384, 15_360)
    check_positions(loop, prompt)
    assert len(assumed_prompt(replace(loop, kind="sft"))) == 17_408
    prompt = assumed_prompt(real("2b", "axpo", "engine.max_length=16900"))
    assert (len(prompt), prompt.images) == (516, ())
    # The lab's model knows 4,096 positions.
    lab = load_config("lab")
    prompt = assumed_prompt(Loop(lab, "rl", find_shapes(str(BASE)).model))
    assert len(prompt) == 4096 - lab.rollout.max_tokens


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_of_the_real_models(name: str):
    loop = real(name)
    config = loop.config
    spans = (ImageSpan("d", 1, 1024),)
    prompt = Segment("p", Origin.PROMPT, (1,) * 1500, images=spans)
    told = estimate(loop, prompt, gpu=True)
    work = step_operations(loop, told, 256)
    sampling, training = work.seconds(REFERENCE)
    print(f"{name}: {sampling / 3600:.1f} h + {training / 3600:.1f} h")
    # 2 operations a parameter of the layers and the head, without attention, is the known floor.
    tokens = 128 * 1500 + 1280 * config.rollout.max_tokens
    layers = told.counts.text - (1 if name == "8b" else 0) * 151936 * PUBLISHED[name][0]
    assert work.sampling > 2 * (layers - 151936 * PUBLISHED[name][0]) * tokens
    # Forward, backward (half of it with adapters), recomputed, reference, old logprobs.
    assert work.training == pytest.approx(work.sampling * (6 if name == "2b" else 5), rel=0.01)
    # A quarter of the places takes four times the reading of weights.
    few = step_operations(loop, told, 64)
    weights = 2 * told.counts.text * config.rollout.max_tokens
    assert few.read - work.read == (20 - 5) * weights


def documented() -> list[str]:
    """The rows of the table in docs/vllm.md: GB of each part, and the room of a server."""
    rows = []
    for recipe in REAL:
        size, stage = recipe.split("/")
        told = reckon(size, stage)
        found, parts = told.found, [told.found.weights]
        parts += [found.trunk, found.features, found.activations + found.logits, told.taken]
        cells = [f"{size / 1e9:.1f}" if size else "" for size in (*parts, told.total)]
        room = f"{told.servers.room:,} tokens" if told.servers else ""
        name = f"{size.upper()} {stage}"
        rows.append(f"| {' | '.join([name, *cells, room])} |".replace("|  |", "| |"))
    return rows


def test_the_documented_sums_are_these():
    page = PAGE.read_text()
    for row in documented():
        assert row in page, f"docs/vllm.md lacks: {row}"
