"""Llama-like text models whose turns are ChatML's, such as SmolLM2.

They have no tool format of their own: tools stand in the system turn as the Qwen families write
them, and a call is spelled, `<tool_call>` being ordinary text to their tokenizers.
"""

from __future__ import annotations

from transformers import LlamaForCausalLM

from axpo.models.families.text import TextFamily


class Llama(TextFamily):
    """`LlamaForCausalLM`, with or without a tied output layer."""

    kind = "llama"
    query_norm = False
    architecture = LlamaForCausalLM
