"""Twenty rows with drawn pictures, so that a recipe of the data task runs before there is any data.

`task.path = "sample"` reads them: `train` (8), `sft` (6, with demonstrations) and `test` (6). They
show what a row may hold, small writing that a zoom reads, several pictures, options and all three
gradings, and are far too few to learn from. `build` draws them.
"""

from pathlib import Path

NAME = "sample"
"""What `task.path` says for them."""

FILES = str(Path(__file__).parent / "rows" / "{split}.jsonl")
"""The shipped files."""
