"""The settings of the engine in this process, which `axpo.engines.transformers` runs."""

from __future__ import annotations

from axpo.config.base import PositiveInt
from axpo.engines.base import Engine, EngineSettings, Start


class Transformers(EngineSettings):
    """The engine that samples in this process, with the trainer's own weights."""

    max_prefill_tokens: PositiveInt = 4096
    """The most tokens of one prefill call, padding included."""

    def start(self, start: Start) -> Engine:
        """An engine that shares the model's weights."""
        from axpo.engines.transformers import TransformersEngine

        assert start.checkpoint is not None
        return TransformersEngine(start.checkpoint, self.slots, self.max_prefill_tokens)
