"""Reverse search: which copies are found in which order, and how a gallery is built."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageOps

from axpo.errors import ModelError, UserError
from axpo.recorded.cache import AnswerCache
from axpo.search.gallery import CUTOFF, Gallery, Match, build_gallery
from axpo.search.recorded import RecordedPictures
from axpo.tasks.data.pictures import open_pictures
from axpo.tools.base import Observation, ToolContext, View
from axpo.tools.image_search import ImageSearchTool
from axpo.tools.zoom import crop
from tests.support.scenes import compressed, scene


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    folder = tmp_path / "gallery"
    (folder / "deep").mkdir(parents=True)
    for number in range(8):
        scene(number).save(folder / f"p{number}.png")
    scene(3).save(folder / "deep" / "twin.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "flat.png")
    lines = [
        {"file": "p3.png", "title": "Harbour", "url": "http://h", "caption": "c" * 50},
        {"file": "p4.png", "caption": "A cliff."},
    ]
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.fixture
def index(gallery: Path, tmp_path: Path) -> Path:
    out = tmp_path / "gallery.idx"
    assert build_gallery(gallery, out).facts.entries == 10
    return out


def find(index: Path, picture: Image.Image, results: int = 5) -> list[Match]:
    async def run() -> list[Match]:
        gallery = Gallery(index)
        await gallery.start()
        try:
            return (await gallery.find(picture, results)).items
        finally:
            await gallery.close()

    return asyncio.run(run())


def call(index: Path, arguments: dict[str, Any], *views: View) -> Observation:
    async def run() -> Observation:
        tool = ImageSearchTool(Gallery(index), results=5, caption=10)
        await tool.start()
        try:
            return await tool(arguments, ToolContext(views))
        finally:
            await tool.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "changed",
    [
        scene(4),
        scene(4).resize((300, 300)),
        scene(4).resize((40, 40)),
        scene(4).resize((160, 120)),
        scene(4).convert("L"),
        scene(4).convert("RGBA"),
        compressed(scene(4), 15),
        scene(4).crop((2, 2, 126, 126)),
    ],
)
def test_a_copy_is_found(index: Path, changed: Image.Image) -> None:
    (match,) = find(index, changed)
    assert (match.title, match.url, match.caption) == ("p4", "p4.png", "A cliff.")
    assert match.distance <= CUTOFF


@pytest.mark.parametrize(
    "other",
    [
        scene(99),
        ImageOps.mirror(scene(4)),
        scene(4).rotate(90),
        scene(4).crop((0, 0, 64, 64)),
        Image.new("RGB", (64, 64), "blue"),
    ],
)
def test_what_looks_different_is_not(index: Path, other: Image.Image) -> None:
    assert find(index, other) == []


def test_nearest_first_and_equals_in_the_order_of_the_paths(index: Path) -> None:
    twin, harbour = find(index, scene(3))
    assert (twin.url, harbour.url) == ("deep/twin.png", "http://h")
    assert twin.distance == harbour.distance == 0
    assert find(index, scene(3), 1) == [twin]


def test_the_tool_looks_up_a_picture_or_what_a_crop_was_cut_from(index: Path) -> None:
    text = "[1] twin\ndeep/twin.png\n\n[2] Harbour\nhttp://h\nccccccccc…"
    views = View.whole(scene(99)), View.whole(scene(3))
    assert call(index, {"img_idx": 1}, *views).text == text
    assert call(index, {"img_idx": 0}, *views).text == "No results."
    zoomed = crop(views[1], (0, 0, 400, 400))
    assert call(index, {"img_idx": 2}, *views, zoomed).text == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "img_idx is missing: expected img_idx"),
        ({"img_idx": "0"}, "img_idx is '0': expected an integer"),
        ({"img_idx": True}, "img_idx is True: expected an integer"),
        ({"img_idx": 1}, "img_idx is 1: expected 0 to 0"),
        ({"img_idx": -1}, "img_idx is -1: expected 0 to 0"),
    ],
)
def test_a_wrong_call_names_the_field(index: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ModelError) as error:
        call(index, arguments, View.whole(scene(0)))
    assert str(error.value) == message


def test_photos_that_exif_turns_and_transparent_logos_are_found(tmp_path: Path) -> None:
    """The index sees a file as a row's picture is seen, so that the same file is found by it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    scene(1).save(folder / "photo.jpg", exif=exif)
    logo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(logo).ellipse((8, 20, 40, 60), fill=(0, 0, 0, 255))
    logo.save(folder / "logo.png")
    build_gallery(folder, tmp_path / "mine.idx")

    async def find(name: str) -> list[tuple[str, int]]:
        gallery = Gallery(tmp_path / "mine.idx")
        await gallery.start()
        (shown,) = open_pictures([str(folder / name)], Path(), "here")
        found = await gallery.find(shown, 5)
        await gallery.close()
        return [(match.title, match.distance) for match in found.items]

    assert asyncio.run(find("photo.jpg")) == [("photo", 0)]
    assert asyncio.run(find("logo.png")) == [("logo", 0)]


def test_no_picture_is_the_models_mistake(index: Path) -> None:
    with pytest.raises(ModelError, match="img_idx is 0: there is no image"):
        call(index, {"img_idx": 0})


def test_answers_are_recorded_by_the_pictures_content(index: Path, tmp_path: Path) -> None:
    async def ask(mode: Any, picture: Image.Image) -> tuple[list[str], bool]:
        pictures = RecordedPictures(Gallery(index), AnswerCache(tmp_path / "a.db", mode))
        await pictures.start()
        try:
            found = await pictures.find(picture, 5)
            return [match.title for match in found.items], found.cached
        finally:
            await pictures.close()

    assert asyncio.run(ask("record", scene(4))) == (["p4"], False)
    assert asyncio.run(ask("replay", scene(4))) == (["p4"], True)


def test_what_cannot_be_read_is_named_and_leaves_no_index(gallery: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.idx"
    captions = gallery / "captions.jsonl"
    captions.write_text('{"file": "p1.png"}\n{"file": "gone.png"}\n')
    with pytest.raises(UserError, match=r"captions.jsonl: no picture gone\.png"):
        build_gallery(gallery, out)
    captions.write_text('{"file": "p1.png"}\n{"title": "x"}\n')
    with pytest.raises(UserError, match=r"captions.jsonl:2: file: Field required"):
        build_gallery(gallery, out)
    captions.unlink()
    (gallery / "broken.png").write_bytes(b"\x89PNG but not")
    with pytest.raises(UserError, match=r"broken\.png"):
        build_gallery(gallery, out)
    with pytest.raises(UserError, match="no picture in it"):
        build_gallery(tmp_path / "nowhere", out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gallery"]


def test_a_gallery_is_not_a_corpus(index: Path) -> None:
    from axpo.search.corpus import Corpus

    with pytest.raises(UserError, match="is a gallery index, expected a corpus index"):
        Corpus(index, 100)
