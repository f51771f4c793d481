"""Build what the lab's tools search in: `python -m lab_base.data`.

Owns the two shipped index files: the corpus of the facts and the gallery of the places' photos.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from axpo.search.gallery import CAPTIONS, build_gallery
from axpo.search.index import Document, build_index
from axpo.tasks.lab import CORPUS, GALLERY, facts, recognise


def documents() -> Iterator[Document]:
    """The corpus: one document for each of the facts."""
    for place in facts.ALL_PLACES:
        for digit in range(10):
            entry = facts.entry(place, digit)
            yield Document(title=entry.title, url=f"{place}/{digit}", text=entry.text)


def build(corpus: Path, gallery: Path) -> None:
    """Write both index files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = folder / "facts.jsonl"
        lines.write_text("".join(json.dumps(it.model_dump()) + "\n" for it in documents()))
        build_index(lines, corpus)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions: list[str] = []
        for place in recognise.shown_places():
            recognise.photo(place).save(folder / f"{place}.png")
            caption = {"file": f"{place}.png", "title": place, "url": f"photos/{place}"}
            captions.append(json.dumps(caption) + "\n")
        (folder / CAPTIONS).write_text("".join(captions))
        build_gallery(folder, gallery)


if __name__ == "__main__":
    build(CORPUS, GALLERY)
