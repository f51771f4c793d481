"""Users' data sets: JSONL, JSON, Parquet and the Hugging Face Hub with one schema (docs/data.md).

`task` is the recipe's section and imports nothing heavy. `reader` puts the other pages together:
`rows` gives the rows of a split by number, `stream` as they arrive; `fields` finds the fields of a
question in a row, `pictures` decodes its pictures, and `check` checks a split before training.
"""
