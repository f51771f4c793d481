"""Recipes for several GPUs: their sums by hand, what is said to fit, and what a step takes."""

from __future__ import annotations

import io
import re
from itertools import product
from math import ceil
from pathlib import Path

import pytest
from rich.console import Console

from axpo import recipes
from axpo.config import load_config
from axpo.costs.account import Account, account
from axpo.costs.hosts import DRIVER, PROCESS, SANDBOX, host_memory
from axpo.costs.operations import REFERENCE
from axpo.costs.sizes import Loop, assumed_prompt, crowded
from axpo.costs.steps import BUSY_HELD, LINK, STORAGE, exchange, expected_step
from axpo.errors import ConfigError
from axpo.models.shapes import find_shapes
from axpo.report.costs import memory_lines, print_costs
from axpo.report.fits import ROWS, Fit, cells, fits, print_fits
from tests.support.recipes import SIZES

FITS = {
    "2b": {(n, kind) for n in (1, 2, 8, 16) for kind in ("full", "LoRA")},
    "4b": {(1, "LoRA"), (2, "LoRA"), *product((8, 16), ("full", "LoRA"))},
    "8b": {(1, "LoRA"), (2, "LoRA"), *product((8, 16), ("full", "LoRA"))},
}


def reckon(size: str, *words: str, kind: str = "rl") -> Account:
    config = load_config("qwen3-vl", f"qwen3-vl-{size}", *words)
    loop = Loop(config, "sft" if kind == "sft" else "rl", find_shapes(config.model.path).model)
    return account(loop, assumed_prompt(loop), "cpu")


def table(size: str, *words: str) -> list[Fit]:
    loop = reckon(size, *words).loop
    given = ["qwen3-vl", f"qwen3-vl-{size}", *words]
    return fits(given, loop.model, assumed_prompt(loop), "cpu")


# ------------------------------------------------------------------ memory, by hand

# Parameters of the 8B model: embeddings and head, a layer, the final norm, the vision tower.
EMBEDDED, LAYER, NORM, VISION = 2 * 151_936 * 4096, 192_946_432, 4096, 576_388_336
ROOT = EMBEDDED + NORM + VISION
ALL = ROOT + 36 * LAYER


def test_the_8b_model_is_added_up_right():
    assert ALL == 8_767_123_696
    attention = 4096 * 128 * (2 * 32 + 2 * 8) + 2 * 128
    assert attention + 3 * 4096 * 12288 + 2 * 4096 == LAYER
    counts = reckon("8b", "full").found.counts
    assert (counts.root, counts.layers, counts.vision) == (ROOT, 36 * LAYER, VISION)


def test_all_weights_of_8b_on_six_ranks_by_hand():
    """Shards of 16 bytes a parameter, a bfloat16 reference, both roots gathered in bfloat16."""
    found = reckon("8b", "gpus-16-full").found
    assert found.parts == {
        "weights, a share of 1/6": ceil(4 * ALL / 6),
        "float32 masters, a share of 1/6": 0,
        "gradients, a share of 1/6": ceil(4 * ALL / 6),
        "AdamW's moments, a share of 1/6": ceil(8 * ALL / 6),
        "reference, a share of 1/6": ceil(2 * ALL / 6),
        "gathered embeddings, head, vision": 2 * 2 * ROOT,
        "three layers on their way": 3 * 2 * LAYER,
        "gradients of embeddings, head, vision": (4 + 2) * ROOT,
        "gradient of a layer, reduced": (2 + 4) * LAYER,
    }
    assert found.closing == 4 * ROOT
    passes = found.trunk + found.activations + found.logits
    assert passes > found.pictures and found.pieces > 1
    assert found.total == sum(found.parts.values()) + found.features + passes
    # What is sampled adds to what there always is, the closing pass's buffer does not.
    assert found.weights == sum(found.parts.values()) + 4 * ROOT < found.total
    frozen = reckon("8b", "gpus-16-full", "rl.optimizer.freeze_vision=true").found
    assert frozen.closing == 4 * (ROOT - VISION)
    assert frozen.parts["AdamW's moments, a share of 1/6"] == ceil(8 * (ALL - VISION) / 6)
    rest = 4 * (ALL - VISION) + 2 * VISION
    assert frozen.parts["weights, a share of 1/6"] == ceil(rest / 6)


def test_held_adapters_of_8b_by_hand():
    told = reckon("8b", "gpus-8-lora")
    widths = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 12288) * 3
    added = 36 * 32 * widths
    assert told.found.parts == {
        "weights, a share of 1/3": ceil((2 * ALL + 4 * added) / 3),
        "float32 masters, a share of 1/3": 0,
        "gradients, a share of 1/3": ceil(4 * added / 3),
        "AdamW's moments, a share of 1/3": ceil(8 * added / 3),
        "reference, a share of 1/3": 0,  # the model with its adapters off
        "gathered embeddings, head, vision": 2 * ROOT,
        "gathered layers": 2 * (36 * LAYER + added),
        "gradients of embeddings, head, vision": 0,
        "gradients of the layers": 4 * added + 2 * added // 36,
    }
    assert told.found.closing == 4 * added // 36
    # Servers have cards of their own.
    assert told.servers is not None and told.taken == 0
    assert (told.servers.count, told.servers.share) == (5, round(0.9 * 80e9))


def test_copies_of_ranks_that_share_float32_and_sft():
    """HSDP: four ranks in two copies; float32 gathers, and rounds nothing; SFT has no reference."""
    words = "full", "gpus-2", "cluster={trainers=4, shard=2}", "model.dtype=float32"
    found = reckon("2b", *words, kind="sft").found
    p, layer = 2_127_532_032, found.counts.layers // 28
    root = p - 28 * layer
    assert found.parts["weights, a share of 1/2"] == 2 * p
    assert "reference" not in {name for name, size in found.parts.items() if size}
    assert found.parts["gathered embeddings, head, vision"] == 4 * root
    assert found.parts["gradients of embeddings, head, vision"] == 4 * root
    assert found.parts["gradient of a layer, reduced"] == 8 * layer


# ------------------------------------------------------------------ the shipped recipes


def test_every_overlay_for_several_gpus_is_in_the_table():
    named = {name for *_, words in ROWS for name in words}
    assert named == {"full", "lora", *(n for n in recipes.names() if n.startswith("gpus-"))}
    assert [(gpus, kind) for gpus, kind, _ in ROWS] == [*product((1, 2, 8, 16), ("full", "LoRA"))]


@pytest.mark.parametrize("size", SIZES)
def test_what_fits_is_said_to_fit_and_what_does_not_to_what_it_comes(size: str):
    for fit in table(size):
        assert fit.told is not None
        expected = "fits" if (fit.gpus, fit.kind) in FITS[size] else "cannot fit"
        assert fit.verdict == expected, (size, fit.recipes)
        cluster, config = fit.told.loop.config.cluster, fit.told.loop.config
        assert (config.model.lora is not None) == (fit.kind == "LoRA")
        if cluster is None:
            assert fit.gpus == 1
            continue
        assert cluster.trainers + cluster.servers * cluster.gpus_per_server == fit.gpus
        assert not crowded(fit.told.loop)
        if expected != "fits":
            assert "spread it over more GPUs (cluster.trainers" in fit.told.refusal
            continue
        # SFT by the same recipe, and GRPO, fit too; less is sampled or nothing.
        for kind, more in (("sft", ()), ("rl", ("algorithm.name=grpo",))):
            other = reckon(size, *fit.recipes, *more, kind=kind)
            assert not other.refusal and not other.exceeds


def test_more_gpus_are_faster_and_a_larger_model_slower():
    minutes: dict[str, list[float]] = {}
    for size in SIZES:
        steps = [
            expected_step(fit.told, REFERENCE).total
            for fit in table(size)
            if fit.told and fit.kind == "LoRA"
        ]
        assert steps == sorted(steps, reverse=True)
        minutes[size] = steps
    assert all(a < b < c for a, b, c in zip(*minutes.values(), strict=True))


# ------------------------------------------------------------------ a step's time


def test_a_step_s_time_by_hand():
    """8B, adapters, 4 ranks and 12 servers: 1,280 trajectories of 8,192 tokens after prompts of
    3,072, 107 of them on each server."""
    told = reckon("8b", "gpus-16-lora")
    step = expected_step(told, REFERENCE)
    traffic = 0.6 * 3.35e12
    weights, token = 2 * ALL, 36 * 8 * 128 * 2 * 2
    rows, answer = 107, 8192
    room = (round(0.9 * 80e9) - weights) // token
    at_once = min(64, room // (3072 + 4096))
    pairs = rows * (answer * 3072 + answer * (answer + 1) / 2)
    read = rows / at_once * answer * weights + token * pairs
    assert step.sampling == pytest.approx(read / traffic)
    longest = 16384 * weights + token * (16384 * 3072 + 16384 * 16385 / 2)
    assert step.tail == pytest.approx(longest / traffic)
    # Two operations a parameter and token, forward; backward and recomputation, and two passes
    # more, take four forward passes. Attention comes to that.
    tokens = 1280 * 8192 + 128 * 3072
    floor = 5 * 2 * 36 * LAYER * tokens / 4 / 989e12 / 0.4 / BUSY_HELD
    assert floor < step.training < 1.5 * floor
    assert step.sending == pytest.approx(2 * 2 * told.found.counts.trained / STORAGE)
    assert step.ahead and step.total == max(step.sampling, step.tail, step.training) + step.sending
    alone = expected_step(reckon("8b", "gpus-16-lora", "rl.max_staleness=0"), REFERENCE)
    assert alone.total == alone.sampling + alone.training + alone.sending > step.total


def test_ranks_that_exchange_more_than_they_compute_wait():
    near = reckon("8b", "gpus-16-full")
    sent = exchange(near)
    # A layer is gathered twice in bfloat16 and reduced in float32; 5 of 6 bytes come from others.
    assert sent.gathered == 2 * 2 * 36 * LAYER * 5 // 6
    assert sent.reduced == 4 * 36 * LAYER * 5 // 6
    assert sent.gathered_once == 2 * 2 * ROOT * 5 // 6
    step = expected_step(near, REFERENCE)
    small = "rl.optimizer.max_tokens_per_micro_batch=256"
    waiting = expected_step(reckon("8b", "gpus-16-full", small), REFERENCE)
    assert waiting.training > step.training
    passes = (128 * 3072 + 1280 * 8192) / 6 / 256
    assert waiting.training > passes * (sent.gathered + sent.reduced) / LINK
    # Ranks on two machines exchange over the network.
    far = expected_step(reckon("8b", "gpus-16-full", small, "cluster.trainers=12"), REFERENCE)
    assert far.training > waiting.training


def test_main_memory_of_the_first_machine():
    parts = host_memory(reckon("8b", "gpus-16-lora"))
    pixels = 2 * 4 * 16384 * 4 * 1536 * 4
    assert parts == {
        "this process": DRIVER,
        "4 trainers": 4 * PROCESS,
        "their pixels of two micro-batches": pixels,
        "sandboxes of 768 rollouts at once": 768 * SANDBOX,
        "4 servers": 4 * PROCESS,
    }
    assert "servers" not in " ".join(host_memory(reckon("8b", "gpus-16-lora", kind="sft")))


# ------------------------------------------------------------------ ranks and trees


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster.trainers=16",), ""),
        (("cluster.trainers=17",), "17 ranks for 64 trees of an update (rl.questions"),
        (("cluster.trainers=32",), "16 would be busy, or lower rl.updates"),
        (("cluster.trainers=32", "rl.updates=1"), ""),
        (("cluster.trainers=33", "rl.updates=1"), "32 would be busy, or raise rl.questions"),
        (("cluster.trainers=1", "rl.questions=2"), ""),
    ],
)
def test_more_ranks_than_a_quarter_of_the_trees_is_said(words: tuple[str, ...], said: str):
    told = crowded(reckon("8b", "gpus-16-lora", *words).loop)
    assert (said in told) if said else told == ""


def test_ranks_that_could_never_have_a_tree_are_refused():
    loop = reckon("8b", "gpus-16-lora", "cluster.trainers=65").loop
    with pytest.raises(
        ConfigError, match=r"^cluster\.trainers: 65 ranks for 64 trees .*at most 64"
    ):
        crowded(loop)
    sft = reckon("8b", "gpus-16-lora", "cluster.trainers=9", "sft.batch=8", kind="sft").loop
    with pytest.raises(ConfigError, match=r"9 ranks for 8 trees .*sft\.batch"):
        crowded(sft)


# ------------------------------------------------------------------ what is printed


def printed(size: str, *words: str) -> str:
    out, given = io.StringIO(), ["qwen3-vl", f"qwen3-vl-{size}", *words]
    loop = reckon(size).loop
    prompt = assumed_prompt(loop)
    print_fits(Console(file=out, width=80), loop.config, given, loop.model, prompt, "cpu")
    return out.getvalue()


def test_the_table_fits_into_80_columns_and_names_every_recipe():
    said = printed("8b", "gpus-8-full", "rl.steps=7")
    assert all(len(line) <= 80 for line in said.splitlines())
    assert re.search(r"^ +1 +full +– +175\.3 GB +35\.2 GB +cannot fit +– +full *$", said, re.M)
    assert re.search(
        r"^ +8 +full +5 \+ 3 +75\.8 GB +72\.0 GB +fits +\d+ min +gpus-8-full", said, re.M
    )
    assert re.search(r"^ +2 +LoRA +1 \+ 1 .* fits .* lora gpus-2 *$", said, re.M)
    assert "nothing of this has been measured on GPUs" in " ".join(said.split())


def test_overlays_that_are_given_do_not_hide_the_others():
    rows = {fit.recipes: cells(fit) for fit in table("8b", "lora")}
    for given in (("gpus-8-full",), ("full", "gpus-2"), ("gpus-16-lora", "cluster.trainers=2")):
        assert {fit.recipes: cells(fit) for fit in table("8b", *given)} == rows


def test_a_server_that_is_too_small_is_said_below():
    """One path of 200,000 tokens is 29.5 GB of KV cache: too much of a shared card."""
    said = printed("8b", "engine.max_length=200000")
    assert said.count("  cannot fit") == 3 and said.count(" fits  ") == 5
    told = " ".join(said.split())
    assert "On 1 GPU (lora): engine.arguments: a server has 35.2 GB of its card" in told


def test_a_rank_s_sum_is_printed_and_what_cannot_fit_is_refused_with_its_parts():
    told = reckon("8b", "gpus-8-full")
    lines = dict(memory_lines(told))
    assert lines["weights, a share of 1/5"] == "7.0 GB" and lines["in all"] == "75.8 GB"
    assert lines["buffer in which gradients are reduced, after the passes, not beside these"]
    assert "share of the vLLM server started beside" not in " ".join(lines)
    out = io.StringIO()
    loop = reckon("8b", "gpus-8-full", "cluster.trainers=3").loop
    with pytest.raises(ConfigError) as refused:
        print_costs(Console(file=out, width=120), loop, assumed_prompt(loop), "cpu")
    assert "Memory of an RL step, on each trainer's card" in out.getvalue()
    assert "expected of a step" in out.getvalue() and "main memory: this process" in out.getvalue()
    said = str(refused.value)
    assert said.startswith(
        "model: every update needs 80.4 GB whatever is sampled (weights, a share"
    )
    assert "buffer in which gradients are reduced, after the passes 7.3 GB" in said
    assert "spread it over more GPUs (cluster.trainers, cluster.shard)" in said


# ------------------------------------------------------------------ docs/cluster.md

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def documented() -> list[str]:
    """The rows of the page's tables: what fits, and the sum of 8B with all weights on six ranks."""
    columns = [table(size) for size in SIZES]
    rows: list[str] = []
    for fits_of in zip(*columns, strict=True):
        gpus, kind, apart, *_ = cells(fits_of[0])
        words = " ".join(f"`{name}`" for name in fits_of[0].recipes)
        trained = "all weights" if kind == "full" else "adapters"
        told: list[str] = []
        for fit in fits_of:
            *_, memory, _, verdict, step, _ = cells(fit)
            told.append(f"{memory}, {step}" if verdict == "fits" else f"no: {memory}")
        rows.append(f"| {' | '.join([gpus, trained, words, apart, *told])} |")
    lines = memory_lines(reckon("8b", "gpus-16-full"))
    end = [name for name, _ in lines].index("in all")
    return rows + [f"| {name} | {size} |" for name, size in lines[: end + 1]]


def test_the_documented_tables_are_these():
    page = PAGE.read_text()
    for row in documented():
        assert row in page, f"docs/cluster.md lacks: {row}"
