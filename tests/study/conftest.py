"""What every test of the study starts from."""

from __future__ import annotations

import pytest

from axpo.report import plots


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and written whole, in fewer pixels: at the full number each takes 0.7 s
    more. The report's tests draw them as they are published."""
    monkeypatch.setattr(plots, "DPI", 24)
