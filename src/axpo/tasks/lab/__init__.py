"""The lab: find-and-read questions over real photos and handwritten digits, small enough for a CPU.

Owns the embedded default task and everything its shipped base model is made of:

- `pictures`: deterministic scenes (photo, cards with real handwritten digits) and what counts
  as a hit of a zoom;
- `questions`: scenes as `Example`s;
- `teacher`: demonstrations for the supervised cold start;
- `tokenizer`: a byte-level tokenizer with whole phrases as tokens, for the Qwen3-VL wire format;
- `model`: the configuration and an equal-size forward pass of the tiny Qwen3-VL;
- `lessons`, `measure`, `card`: the base's training batches, what it can do, and its model card;
- `pretrain`: the script that trains the base model in `base/` from scratch.
"""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The shipped base model's folder."""
