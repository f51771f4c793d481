"""A rehearsal of a first real run on two cores: `make rehearsal`.

Everything that a Qwen3-VL-2B run meets and the lab never does: the model's true widths and its true
vocabulary, bfloat16, adapters, a vLLM server with fewer places than rollouts, rows of a public
set's form. Only the number of layers is small, and the weights are random: a few demonstrations are
memorised first, so that there is something to reinforce.
"""
