"""An agent and a check of parity for the tiny checkpoint."""

from __future__ import annotations

import numpy as np
from PIL import Image

from axpo.config import RolloutSettings
from axpo.engines.base import Engine
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.tasks.grading import Graders
from axpo.tools import make_tools
from tests.support.rollouts import ZOOM


def agent_of(engine: Engine, checkpoint: Checkpoint, tokens: int) -> Agent:
    """Rollouts of two turns of at most `tokens` sampled tokens each."""
    tools = make_tools((ZOOM,))
    limits = RolloutSettings(max_turns=2, max_turn_tokens=tokens, max_tokens=1000)
    return Agent(
        engine, Rendering(checkpoint.processor, tools, None), tools, limits, Graders().grade
    )


def detailed(seed: int) -> Image.Image:
    """128 pixels a side: 64 tokens, every fourth pixel of its own colour."""
    cells = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((128, 128), Image.Resampling.NEAREST)
