"""The lab: questions over real photos and handwritten digits, small enough for a laptop's CPU.

Owns the embedded default task and everything its shipped base model is made of:

- `pictures`: deterministic scenes (photo, cards with real handwritten digits) and what counts
  as a hit of a zoom;
- `questions`: examples of four families: *find* (which digit? zoom in), *calculate* (a product with
  it: Python), *look up* (its code in a place: search) and, for evaluation only, *recognise* (which
  place is it? image search);
- `teacher`: how demonstrations for the supervised cold start err, and those of *find*;
  `calculate`, `look_up`, `recognise` are the other families, `facts` what can be looked up;
- `data`: the script that builds the index files in `data/` that search and image search use;
- `tokenizer`: a byte-level tokenizer with whole phrases as tokens, for the Qwen3-VL wire format;
- `model`: the configuration and an equal-size forward pass of the tiny Qwen3-VL;
- `dense`, `lessons`, `measure`, `card`: the base's training batches, what it can do, its card;
- `pretrain`: the script that trains the base model in `base/` from scratch.
"""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The shipped base model's folder."""

CORPUS = Path(__file__).parent / "data" / "corpus.index"
"""The shipped index of the facts, for `web_search`."""

GALLERY = Path(__file__).parent / "data" / "gallery.index"
"""The shipped index of the places' photos, for `image_search`."""
