"""The lab: questions over real photos and handwritten digits, small enough for a laptop's CPU.

Owns the embedded default task:

- `pictures`: deterministic scenes (photo, cards with real handwritten digits) and what counts
  as a hit of a zoom;
- `questions`: examples of four families: *find* (which digit? zoom in), *calculate* (a product with
  it: Python), *look up* (its code in a place: search) and, for evaluation only, *recognise* (which
  place is it? image search);
- `teacher`: how demonstrations for the supervised cold start err, and those of *find*;
  `calculate`, `look_up`, `recognise` are the other families, `facts` what can be looked up;
- `words`: the phrases of questions, thinking and calls, which are tokens of the base model.

The base model in `base/` and the index files in `data/` are made by `lab_base/`, in the repository.
"""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The shipped base model's folder."""

CORPUS = Path(__file__).parent / "data" / "corpus.index"
"""The shipped index of the facts, for `web_search`."""

GALLERY = Path(__file__).parent / "data" / "gallery.index"
"""The shipped index of the places' photos, for `image_search`."""
