"""The README's pictures of a finished quickstart: its curves, the tree browser in Chromium, and the
diagram of the method. `python -m benchmarks.pictures runs/quickstart` writes them into `docs/`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from axpo.report.plots import save, write_png
from benchmarks.diagram import cluster_diagram, diagram

DOCS = Path("docs")
SIZE = (1040, 800)
SCALE = 1.6
SCHEMES = {"": 1, "-dark": 0}
"""Ending of a picture's name -> Chromium's number of the colour scheme."""
BROWSERS = ("chromium", "google-chrome")
ALONE = "header.top, section:not(#trees) { display: none; } section { margin-top: 18px; }"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures of the run's folder that is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="a quickstart's folder")
    parser.add_argument("--out", type=Path, default=DOCS, help="where they go (docs)")
    options = parser.parse_args(arguments)
    page = options.run / "report.html"
    if not page.is_file():
        sys.exit(f"no {page}; expected the folder of a finished `axpo quickstart`")
    options.out.mkdir(parents=True, exist_ok=True)
    for ending in SCHEMES:
        shutil.copy(page.with_name(f"report{ending}.png"), options.out / f"quickstart{ending}.png")
    save(diagram(), options.out / "axpo.png")
    save(cluster_diagram(), options.out / "cluster.png")
    screenshots(page, options.out / "trees.png")


def screenshots(page: Path, out: Path) -> None:
    """The page's tree browser, at a recovered question with boxes on its picture if there is one,
    as `out` and for a dark page beside it."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed; {out} was not made")
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "trees.html"
        alone.write_text(text.replace("</style>", f"{ALONE}</style>", 1))
        for ending, scheme in SCHEMES.items():
            picture = out.resolve().with_stem(out.stem + ending)
            command = [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--virtual-time-budget=4000", f"--user-data-dir={folder}/profile",
                f"--window-size={SIZE[0]},{SIZE[1]}", f"--force-device-scale-factor={SCALE}",
                f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}",
                f"{alone.as_uri()}#{urlencode(_telling(text))}",
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            with Image.open(picture) as shot:
                pixels = np.asarray(shot.convert("RGB"), np.float64) / 255
            write_png(pixels, picture)


def _telling(text: str) -> dict[str, Any]:
    """What the page's address names: a group that resampling recovered, one with boxes first."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data = json.loads(found[1])
    recovered = [group for group in data["groups"] if group["category"] == "recovered"]
    if not recovered:
        return {}
    best = max(recovered, key=lambda g: (_boxes(g) > 0, -len(g["branches"]), g["step"]))
    run = data["runs"][best["run"]]["name"]
    return {"run": run, "step": best["step"], "question": best["id"]}


def _boxes(group: dict[str, Any]) -> int:
    grown = [t for branch in group["branches"] for t in branch["continuations"]]
    return sum(call["box"] is not None for t in grown for call in t["calls"])


if __name__ == "__main__":
    main()
