"""The scripts that made the lab's shipped base model, its index files and the sample rows.

`python -m lab_base.pretrain --out DIR` trains the model of `src/axpo/tasks/lab/base/` from scratch
in forty minutes of one CPU core; `python -m lab_base.data` builds the files of
`src/axpo/tasks/lab/data/` that search and image search use. `python -m lab_base.sample` draws the
rows of `src/axpo/tasks/sample/`.

- `tokenizer`: a byte-level tokenizer with whole phrases as tokens, for the Qwen3-VL wire format;
- `model`: the configuration and an equal-size forward pass of the tiny Qwen3-VL;
- `dense`, `lessons`: the training batches of the vision tower and of the language model;
- `measure`, `card`: what the model can do, and its card;
- `pretrain`, `data`, `sample`: the scripts.
"""
