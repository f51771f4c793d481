"""Norms and MLPs that keep less for the backward pass, against transformers' own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from axpo.config import LoraSettings
from axpo.models.families import PAGES, family_of
from axpo.models.lean import LeanMLP, LeanNorm, use_lean_layers
from axpo.models.lora import adapters_of, add_adapters
from tests.support.families import family_checkpoint
from tests.support.lora import adapted
from tests.support.saved_bytes import SavedBytes

TOKENS = 37
DTYPES = [torch.float32, torch.bfloat16]
OF_GRADIENTS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Relative error against the plain modules' gradients, which are rounded more often."""


def lean_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LeanNorm | LeanMLP)}


def plain(module: nn.Module) -> nn.Module:
    """A copy of the module as transformers makes it."""
    found = copy.deepcopy(module)
    _, _, found.__class__ = type(found).__mro__[:3]
    assert not isinstance(found, LeanNorm | LeanMLP)
    return found


def width(module: nn.Module) -> int:
    if isinstance(module, LeanNorm):
        return module.weight.numel()
    return module.gate_proj.in_features  # pyright: ignore


def rows_of(module: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(1, TOKENS, width(module), dtype=dtype).requires_grad_()


Step = tuple[torch.Tensor, dict[str, torch.Tensor]]


def step(module: nn.Module, rows: torch.Tensor, call: Callable | None = None) -> Step:
    """The result, and gradients by name of what has one ("" is the input's)."""
    names = {"": rows} | dict(module.named_parameters())
    names = {name: x for name, x in names.items() if x.requires_grad}
    out = (call or module)(rows)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, dict(zip(names, torch.autograd.grad(out, names.values(), slope), strict=True))


def check(found: Step, expected: Step) -> None:
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, right in expected[1].items():
        ours = found[1][name]
        assert ours.dtype == right.dtype
        error = ((ours - right).double().norm() / right.double().norm()).item()
        assert error < OF_GRADIENTS[right.dtype], name


def samples(kind: str) -> Iterator[nn.Module]:
    """One of each lean module of a layer, and of a vision block's, with weights that are drawn."""
    found = lean_modules(family_checkpoint(kind).model)
    torch.manual_seed(2)
    for name, module in found.items():
        if ".0." in name or "layers" not in name:
            for parameter in module.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape)
            yield module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", PAGES)
def test_values_and_gradients_are_those_of_the_plain_modules(kind: str, dtype: torch.dtype):
    for module in samples(kind):
        module.to(dtype)
        rows = rows_of(module, dtype)
        check(step(module, rows), step(plain(module), rows))


@pytest.mark.parametrize("kind", PAGES)
def test_all_of_a_text_model_are_lean(kind: str):
    model = family_checkpoint(kind).model
    family = family_of(model.config)
    for layer in family.decoder(model).layers:
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
        if family.query_norm:
            norms += [layer.self_attn.q_norm, layer.self_attn.k_norm]
        assert isinstance(layer.mlp, LeanMLP)
        assert all(isinstance(norm, LeanNorm) for norm in norms)
    assert isinstance(family.decoder(model).norm, LeanNorm)
    in_vision = [isinstance(block.mlp, LeanMLP) for block in family.vision_blocks(model)]  # pyright: ignore
    assert all(found is family.gated_vision for found in in_vision)


def kept(call: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, model) -> int:
    """The bytes that are kept beside the input."""
    with SavedBytes([rows, *model.parameters()]) as saved:
        out = call(rows)
    assert out.requires_grad
    return saved.live


@pytest.mark.parametrize(("gate", "lean"), [(nn.GELU(), False), (nn.SiLU(), True)])
def test_an_mlp_with_another_gate_stays_as_it_is(gate: nn.Module, lean: bool):
    found = lean_modules(family_checkpoint("llama").model).values()
    mlp = plain(next(module for module in found if isinstance(module, LeanMLP)))
    mlp.act_fn = gate
    use_lean_layers(mlp)
    assert isinstance(mlp, LeanMLP) == lean


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_kept(dtype: torch.dtype):
    """By hand: a number per row, or two arrays of the inner width; the plain ones keep more."""
    layer = family_checkpoint("qwen3_vl").model.to(dtype).model.language_model.layers[0]
    norm, mlp, size = layer.input_layernorm, layer.mlp, dtype.itemsize
    inner = mlp.gate_proj.out_features
    rows = rows_of(norm, dtype)
    assert kept(norm, rows, norm) == 4 * TOKENS
    assert kept(mlp, rows, mlp) == 2 * inner * TOKENS * size
    theirs = plain(norm), plain(mlp)
    assert kept(theirs[0], rows, theirs[0]) >= TOKENS * rows.shape[-1] * size
    assert kept(theirs[1], rows, theirs[1]) == 4 * inner * TOKENS * size


def test_nothing_is_kept_without_gradients_and_frozen_weights_have_none():
    layer = family_checkpoint("qwen3_vl").model.model.language_model.layers[0]
    for module in (layer.input_layernorm, layer.mlp):
        module.requires_grad_(False)
        rows = rows_of(module)
        found = step(module, rows)
        assert list(found[1]) == [""]
        check(found, step(plain(module), rows))
        assert not module(rows.detach()).requires_grad
        with torch.no_grad(), SavedBytes([]) as saved:
            assert torch.equal(module(rows), found[0])
        assert saved.peak == 0
    # Weights alone, as in a first layer whose input has no gradient.
    for module in (layer.input_layernorm, layer.mlp):
        module.requires_grad_(True)
        rows = rows_of(module).detach()
        check(step(module, rows), step(plain(module), rows))


@pytest.mark.parametrize("targets", [["down_proj"], ["gate_proj", "q_proj"], None], ids=str)
@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_adapters(kind: str, targets: list[str] | None):
    """Beside PEFT's own forward pass: values to the bit, gradients of A and B and of the input."""
    values = {"targets": targets} if targets else {}
    checkpoint = adapted(made=lambda: family_checkpoint(kind), vision=True, **values)
    for module in lean_modules(checkpoint.model).values():
        rows = rows_of(module)
        found = step(module, rows)
        check(found, step(plain(module), rows))
        if isinstance(module, LeanMLP) and (targets is None or "down_proj" in targets):
            assert {"down_proj.lora_A.default.weight", ""} <= found[1].keys()


def test_adapters_keep_no_more_than_their_own():
    """Two arrays of the inner width, and what each A makes."""
    model = adapted().model
    mlp = model.model.language_model.layers[0].mlp
    inner, rank = mlp.gate_proj.out_features, 4
    assert kept(mlp, rows_of(mlp), mlp) == (2 * inner + 3 * rank) * TOKENS * 4


def test_adapters_that_are_off_are_left_out():
    mlp = adapted().model.model.language_model.layers[0].mlp
    rows = rows_of(mlp)
    [(narrow, wide, scale)] = adapters_of(mlp.down_proj)
    assert (narrow.weight.shape[0], wide.weight.shape[1], scale) == (4, 4, 2.0)
    on = mlp(rows)
    for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        layer.enable_adapters(False)
    assert adapters_of(mlp.down_proj) == adapters_of(nn.Linear(2, 2)) == []
    off = mlp(rows)
    assert not torch.equal(off, on)
    assert torch.equal(off, plain(mlp)(rows))


def test_layers_may_be_computed_a_second_time():
    """Under gradient checkpointing they keep nothing but their input, and give the same."""
    layer = family_checkpoint("qwen3_vl").model.model.language_model.layers[0]
    for module in (layer.input_layernorm, layer.mlp):
        rows = rows_of(module)

        def again(rows: torch.Tensor, module: nn.Module = module) -> torch.Tensor:
            out = recompute(module, rows, use_reentrant=False)
            assert isinstance(out, torch.Tensor)
            return out

        check(step(module, rows, again), step(plain(module), rows))
        assert kept(again, rows, module) == 0


def test_copies_are_of_their_own_weights():
    layer = family_checkpoint("qwen3_vl").model.model.language_model.layers[0]
    twin = copy.deepcopy(layer.mlp)
    rows = rows_of(twin)
    before = twin(rows)
    layer.mlp.down_proj.weight.data.zero_()
    assert isinstance(twin, LeanMLP) and torch.equal(twin(rows), before)
    assert layer.mlp(rows).abs().max() == 0


def test_adapters_may_come_after_a_first_pass():
    model = family_checkpoint("qwen3").model
    mlp = model.model.layers[0].mlp
    rows = rows_of(mlp)
    before = mlp(rows)
    add_adapters(model, LoraSettings(), "tiny", 0)
    assert torch.equal(mlp(rows), before)  # B starts at 0
    assert {name.rpartition(".lora_")[0] for name in step(mlp, rows)[1]} > {"down_proj"}
