"""Twenty rows with drawn pictures, so that a recipe of the data task runs before there is any data.

`task.path = "sample"` reads them: `train` (8), `sft` (6, with demonstrations) and `test` (6). They
show what a row may hold: small writing that a zoom reads, several pictures, options and all three
gradings. They are far too few to learn from. `lab_base/sample.py`, in the repository, draws them.
"""

from pathlib import Path

NAME = "sample"
"""The value of `task.path` that names them."""

FILES = str(Path(__file__).parent / "rows" / "{split}.jsonl")
"""The shipped files."""
