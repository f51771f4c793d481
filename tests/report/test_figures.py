"""The look of the project's figures: two pages' grounds, one width, labels apart, colours."""

from __future__ import annotations

import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axpo.report.names import BASE_COLOURS, OTHER_COLOURS
from axpo.report.plots import (
    DPI,
    WIDTH,
    at_night,
    comparison_png,
    label_ends,
    new_figure,
    picture,
    save,
)
from axpo.report.runs import RunView
from benchmarks import pictures, plots
from tests.support.pages import build

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_of_a_page_is_there_for_a_light_and_a_dark_one(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"!\[[^\]]*\]\([^)]*\.png\)", text)
    for dark, light in re.findall(r'srcset="([^"]*)"><img alt="[^"]+" src="([^"]*)"', text):
        assert (page.parent / light).is_file() and (page.parent / dark).is_file()
        assert Path(dark).stem == f"{Path(light).stem}-dark"
    assert text.count("<img") == text.count("srcset=")


def test_a_figure_is_written_twice_at_one_width_and_the_same_again(tmp_path: Path) -> None:
    figure, axes = new_figure(1, 2, 2.0)
    axes[0][0].plot([0, 1], [0, 1], color=BASE_COLOURS["AXPO"], lw=9)
    path = save(figure, tmp_path / "a.png")
    first = [f.read_bytes() for f in sorted(tmp_path.iterdir())]
    with Image.open(path) as light, Image.open(tmp_path / "a-dark.png") as dark:
        assert light.size == dark.size == (round(WIDTH * DPI), 2 * DPI)
        assert light.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert sum(dark.convert("RGB").getpixel((0, 0))) < 80
    save(figure, path)
    assert [f.read_bytes() for f in sorted(tmp_path.iterdir())] == first
    assert 'srcset="d/a-dark.png"' in picture("d/a.png", "A") and 'src="d/a.png"' in picture(
        "d/a.png", "A"
    )


def test_at_night_light_and_dark_change_places_and_hues_stay() -> None:
    drawn = np.array([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.2, 0.4, 0.8]]])
    white, black, blue = at_night(drawn)[0]
    assert white.max() < 0.1 and black.min() > 0.85
    assert blue.argmax() == 2 and blue.argmin() == 0


@pytest.mark.parametrize("values", [(0.81, 0.77), (0.04, 0.07), (0.5, 0.5, 0.5), (1.0, 1.0)])
def test_labels_of_curves_that_end_close_together_do_not_overlap(values: tuple) -> None:
    figure, axes = new_figure(1, 3, 2.7)
    axes[0][0].set(xlim=(0, 12), ylim=(0, 1.02))
    label_ends(axes[0][0], [(10.0, value, "#000000") for value in values])
    figure.canvas.draw()
    boxes = sorted(
        (text.get_window_extent().y0, text.get_window_extent().y1) for text in axes[0][0].texts
    )
    assert len(boxes) == len(values)
    assert all(low >= high - 1 for (_, high), (low, _) in pairwise(boxes))


def test_the_pictures_of_a_run_are_its_curves_its_trees_and_the_diagram(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed")
    page, out = build(tmp_path, hostile=False), tmp_path / "docs"
    comparison_png(page.with_suffix(".png"), [RunView.load(tmp_path / "axpo")])
    pictures.main([str(tmp_path), "--out", str(out)])
    made = {
        f"{name}{page}.png"
        for name in ("axpo", "cluster", "quickstart", "trees")
        for page in ("", "-dark")
    }
    assert {path.name for path in out.iterdir()} == made
    shades = []
    for ending in ("", "-dark"):
        with Image.open(out / f"trees{ending}.png") as shot:
            assert shot.size == tuple(round(pictures.SCALE * side) for side in pictures.SIZE)
            shades.append(shot.convert("L").resize((1, 1)).getpixel((0, 0)))
    assert shades[0] > 150 > shades[1]
    with pytest.raises(SystemExit, match="axpo quickstart"):
        pictures.main([str(tmp_path / "nothing"), "--out", str(out)])


def test_axpo_has_its_colour_everywhere_and_comparators_have_others() -> None:
    assert BASE_COLOURS["AXPO"] == plots.OURS
    assert plots.OURS not in (*plots.BARS, plots.THEIRS, *OTHER_COLOURS)


def test_colours_of_other_models_are_apart() -> None:
    shades = [
        [int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (*OTHER_COLOURS, *BASE_COLOURS.values())
    ]
    apart = [math.dist(a, b) for i, a in enumerate(shades) for b in shades[:i]]
    assert min(apart) > 60
