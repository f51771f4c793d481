"""Users' data sets: JSONL, Parquet and the Hugging Face Hub with one schema (docs/data.md).

`task` is the recipe's section and imports nothing heavy; `reader` puts the others together: `rows`
gives a split's rows by number, `stream` as they arrive; `fields` finds a question's fields in a
row, `pictures` decodes its pictures, `check` looks at a split before anything is trained.
"""
