"""Qwen3-VL-2B as published, but for the number of layers and the weights, which are random."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from axpo.models.loading import Checkpoint, Processor
from axpo.models.shapes import published
from axpo.models.tiny import tiny_processor
from rehearsal.vocabulary import true_tokenizer

LAYERS = 2
"""Of text and of vision each, and so of DeepStack's levels; published are 28, 24 and 3."""


def write_model(folder: Path, seed: int = 0) -> None:
    """Write the checkpoint (1.2 GB) in bfloat16."""
    tokenizer = true_tokenizer()
    config = published("qwen3-vl-2b")
    config.text_config.num_hidden_layers = LAYERS
    config.vision_config.depth = LAYERS
    config.vision_config.deepstack_visual_indexes = list(range(LAYERS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16).eval()
        with torch.no_grad():
            for module in model.model.modules():
                if isinstance(module, nn.Linear | nn.Conv3d):
                    module.weight.normal_(0, module.weight[0].numel() ** -0.5)
    model.tie_weights()
    processor = Processor.of(str(folder), config, tokenizer, tiny_processor())
    Checkpoint(processor, model).save(folder)
