"""Servers, a checkpoint and its writer for the tests of engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from axpo.engines.vllm import engine, pool
from axpo.models.loading import Checkpoint
from tests.support.engine_contract import Writer
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_fakes import Setting


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    """Fakes and engines of one test; engines do not wait long between two looks or attempts."""
    monkeypatch.setattr(pool, "HEALTH_EVERY", 0.05)
    monkeypatch.setattr(engine, "BACKOFF", 0.01)
    made = Setting(tmp_path)
    yield made
    for fake in made.fakes:
        fake.stop()


@pytest.fixture
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(0)


@pytest.fixture
def writer(checkpoint: Checkpoint) -> Writer:
    return Writer(checkpoint, 0)
