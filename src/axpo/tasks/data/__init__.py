"""Users' data sets: JSONL, Parquet and the Hugging Face Hub with one schema (docs/data.md).

`rows` gives a split's rows by number, `stream` as they arrive; `fields` finds a question's fields
in a row, `pictures` decodes its pictures, `check` looks at a split before anything is trained, and
`task` puts them together.
"""

from axpo.tasks.data.task import DataTask

__all__ = ["DataTask"]
