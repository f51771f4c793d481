"""Qwen3's dense text models: as Qwen2.5's, with normalised queries and keys, and with thinking.

A Thinking model's generation prompt opens thinking. A hybrid one samples the opening tag itself,
and with it decides whether it thinks. Past thinking stays on the path, as in a tool loop of the
family's own template.
"""

from __future__ import annotations

from transformers import Qwen3ForCausalLM

from axpo.models.families.text import TextFamily


class Qwen3(TextFamily):
    """The dense models from 0.6B to 32B; those with experts are another family."""

    kind = "qwen3"
    architecture = Qwen3ForCausalLM
