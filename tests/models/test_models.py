"""What engine and trainer share of the model: positions and picture features."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchEmbed

from axpo.errors import CheckpointError
from axpo.models import vision
from axpo.models.families.qwen3_vl import encoder_outputs
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.models.positions import Grid, rope_positions
from axpo.models.tiny import tiny_processor
from axpo.models.vision import (
    Features,
    PixelCache,
    as_seen,
    encode_pictures,
    seen_limits,
)
from axpo.pictures import MAX_ASPECT, picture_digest
from axpo.tree import ImageSpan
from tests.support.tiny import tiny_checkpoint, tiny_picture

SIZES = ((64, 64), (48, 64), (32, 32), (64, 64), (128, 16), (48, 64), (16, 96))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return tiny_checkpoint(0)


def page(
    checkpoint: Checkpoint, grids: list[Grid], gaps: list[int]
) -> tuple[list[int], list[ImageSpan]]:
    """Tokens with `gaps[i]` words before picture i, and the last gap after the last."""
    tokens: list[int] = []
    spans: list[ImageSpan] = []
    for grid, gap in zip(grids, gaps, strict=False):
        tokens += [1] * gap
        length = grid[0] * grid[1] * grid[2] // checkpoint.processor.merge_size**2
        spans.append(ImageSpan(str(len(spans)), len(tokens), length))
        tokens += [checkpoint.processor.image_token] * length
    return tokens + [1] * gaps[-1], spans


@pytest.mark.parametrize("seed", range(20))
def test_positions_are_the_models_own(checkpoint: Checkpoint, seed: int) -> None:
    draws = random.Random(seed)
    grids = [
        (1, 2 * draws.randint(1, 9), 2 * draws.randint(1, 9)) for _ in range(draws.randrange(4))
    ]
    gaps = [draws.randint(1, 7) for _ in range(len(grids) + 1)]
    tokens, spans = page(checkpoint, grids, gaps)
    got, following = rope_positions(
        len(tokens), zip(spans, grids, strict=True), 0, checkpoint.processor.merge_size
    )
    ids = torch.tensor([tokens])
    expected, _ = checkpoint.model.model.get_rope_index(
        ids,
        (ids == checkpoint.processor.image_token).int(),
        torch.tensor(grids) if grids else None,
    )
    assert torch.equal(got, expected[:, 0])
    assert following == expected.max() + 1
    # A later run starts where the one before it ends, on all axes.
    shifted, end = rope_positions(
        len(tokens), zip(spans, grids, strict=True), 100, checkpoint.processor.merge_size
    )
    assert torch.equal(shifted, got + 100)
    assert end == following + 100


def test_positions_of_a_wide_picture_are_pinned() -> None:
    spans = [(ImageSpan("a", 2, 3), (1, 2, 6))]
    positions, following = rope_positions(6, spans, 10, 2)
    assert positions.tolist() == [
        [10, 11, 12, 12, 12, 15],
        [10, 11, 12, 12, 12, 15],
        [10, 11, 12, 13, 14, 15],
    ]
    assert following == 16


def test_positions_name_a_resized_picture() -> None:
    with pytest.raises(ValueError, match=r"picture a has 4 placeholder tokens.*needs 3"):
        rope_positions(9, [(ImageSpan("a", 2, 4), (1, 2, 6))], 0, 2)


@settings(deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400))
def test_a_grid_is_known_from_the_size(width: int, height: int) -> None:
    processor = tiny_checkpoint().processor
    image = Image.new("RGB", (width, height))
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="aspect ratio"):
            processor.grid(image)
        return
    pixels = PixelCache(processor.image_processor)("a", image)
    assert processor.grid(image) == pixels.grid
    assert processor.picture_tokens(image) == pixels.tokens(processor.merge_size)


def features(checkpoint: Checkpoint, sizes: tuple[tuple[int, int], ...]) -> list[Features]:
    cache = PixelCache(checkpoint.processor.image_processor)
    pictures = [tiny_picture(i, size) for i, size in enumerate(sizes)]
    pixels = [cache(picture_digest(picture), picture) for picture in pictures]
    with torch.no_grad():
        together = encode_pictures(checkpoint.model, pixels)
        for i, own in enumerate(pixels):
            (alone,) = encode_pictures(checkpoint.model, [own])
            assert len(alone.embeds) == own.tokens(checkpoint.processor.merge_size)
            for one, other in zip(
                (together[i].embeds, *together[i].deepstack),
                (alone.embeds, *alone.deepstack),
                strict=True,
            ):
                assert (one - other).abs().max() < 3e-5 * other.abs().max()
    return together


def test_pictures_together_are_pictures_alone(checkpoint: Checkpoint) -> None:
    """Whatever their sizes and order; and no two pictures look alike."""
    together = features(checkpoint, SIZES)
    assert (together[0].embeds - together[3].embeds).abs().max() > 0.1


def test_features_stand_for_pixels(checkpoint: Checkpoint) -> None:
    """Precomputed features give the logits that transformers' own attention gives pixels."""
    pictures = [tiny_picture(i, size) for i, size in enumerate(SIZES[:3])]
    cache = PixelCache(checkpoint.processor.image_processor)
    pixels = [cache(picture_digest(picture), picture) for picture in pictures]
    grids = [p.grid for p in pixels]
    tokens, spans = page(checkpoint, grids, [3, 2, 4, 5])
    positions, _ = rope_positions(
        len(tokens), zip(spans, grids, strict=True), 0, checkpoint.processor.merge_size
    )
    ids = torch.tensor([tokens])
    vision = checkpoint.model.model.visual.config
    with torch.no_grad():
        got = checkpoint.model(
            input_ids=ids,
            position_ids=positions[:, None],
            mm_encoder_outputs=encoder_outputs(encode_pictures(checkpoint.model, pixels)),
        ).logits
        batched, vision._attn_implementation = vision._attn_implementation, "sdpa"
        expected = checkpoint.model(
            input_ids=ids,
            mm_token_type_ids=(ids == checkpoint.processor.image_token).int(),
            **checkpoint.processor.image_processor(images=pictures, return_tensors="pt"),
        ).logits
        vision._attn_implementation = batched
    assert (got - expected).abs().max() < 1e-4
    assert encoder_outputs([]) is None


def test_patches_are_embedded_as_by_the_convolution(checkpoint: Checkpoint) -> None:
    embed = checkpoint.model.model.visual.patch_embed
    patches = PixelCache(checkpoint.processor.image_processor)("a", tiny_picture(1)).values
    with torch.no_grad():
        assert embed.proj.weight.ndim == 5
        expected = Qwen3VLVisionPatchEmbed.forward(embed, patches)
        assert (embed(patches) - expected).abs().max() < 1e-5


def test_pixels_are_kept_by_content_up_to_a_size(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {name: tiny_picture(i) for i, name in enumerate("abc")}
    size = PixelCache(checkpoint.processor.image_processor)("a", pictures["a"]).values.nbytes
    monkeypatch.setattr(vision, "KEPT_BYTES", 2 * size)
    cache = PixelCache(checkpoint.processor.image_processor)
    first = {name: cache(name, picture) for name, picture in pictures.items()}
    assert cache("c", pictures["c"]) is first["c"]
    assert cache("a", pictures["a"]) is not first["a"]  # the oldest left
    assert cache("b", pictures["b"]) is not first["b"]


@pytest.mark.parametrize("size", [(384, 384), (300, 77), (17, 40), (64, 64)])
def test_a_picture_as_seen_needs_no_resizing(size: tuple[int, int]) -> None:
    processor = tiny_checkpoint().processor.image_processor
    image = tiny_picture(0, size).effect_spread(3)
    seen = as_seen(processor, image)
    first, again = (processor(images=[i], return_tensors="pt") for i in (image, seen))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    height, width = (first["image_grid_thw"][0, 1:] * processor.patch_size).tolist()
    assert seen.size == (width, height)


@pytest.mark.parametrize(
    ("patch", "limits"), [(8, (3600, 4400)), (8, (2304, 2304)), (16, (65_536, 16_777_216))]
)
def test_a_picture_as_seen_keeps_its_size_under_its_limits(
    patch: int, limits: tuple[int, int]
) -> None:
    """Under the processor's own limits many a picture would change once more where these are close
    to each other; a ratio of 200 before or after the first change would be refused."""
    processor = tiny_processor(patch, *limits)
    factor, draws = patch * processor.merge_size, random.Random(0)
    wide = seen_limits(processor)
    changed = 0
    for _ in range(5_000):
        short = round(2 ** draws.uniform(0, 11))
        width, height = draws.sample([short, draws.randint(short, MAX_ASPECT * short)], 2)
        size = smart_resize(height, width, factor, *limits)
        assert smart_resize(*size, factor, *wide.values()) == size
        changed += smart_resize(*size, factor, *limits) != size
    assert (changed > 0) == (limits[1] < 2 * limits[0])


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """transformers would draw them at random, and training would begin from noise."""
    tiny_checkpoint(0).save(tmp_path)
    load_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "layers.1.mlp.up_proj" in n)
    save_file({n: w for n, w in weights.items() if n != name}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks the weights {name}: they would be random"):
        load_checkpoint(tmp_path)
    renamed = {n.replace("language_model", "text"): w for n, w in weights.items()}
    save_file(renamed, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"and \d+ more; it has .*\.text\..* does not know"):
        load_checkpoint(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{tmp_path}: its weights cannot be read .*put the"):
        load_checkpoint(tmp_path)
