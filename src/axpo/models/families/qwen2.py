"""Qwen2.5's and Qwen2's text models: their template knows tools, and calls' tags are tokens."""

from __future__ import annotations

from transformers import Qwen2ForCausalLM

from axpo.models.families.text import TextFamily


class Qwen2(TextFamily):
    """The dense models; one with a sliding window in some layers is refused."""

    kind = "qwen2"
    query_norm = False
    architecture = Qwen2ForCausalLM
