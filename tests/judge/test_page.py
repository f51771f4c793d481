"""The prompt of docs/extend/prompt.md works as it is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from axpo.config import load_config
from tests.support.fake_judge import FakeJudge, graded, judging, question

PAGE = (Path(__file__).parents[2] / "docs" / "extend" / "prompt.md").read_text()


def test_the_page_s_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (prompt,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    (command,) = re.findall(r"```\n(axpo .*?)\n```", PAGE)
    given = [word for word in shlex.split(command) if "=" in word]
    settings = load_config("lab", "task={name='data', path='sample'}", *given).judge
    assert settings is not None and settings.prompt is not None
    Path(settings.prompt).write_text(prompt)
    replies = iter(
        ["<judge>Yes</judge> Felis catus is the cat.", "<judge>No</judge> A dog is none."]
    )
    with judging(FakeJudge(lambda _: next(replies))) as server:
        asked = question(answer="a cat")
        assert graded(server, tmp_path, "Felis catus", asked, prompt=settings.prompt).reward == 1.0
        assert graded(server, tmp_path, "a dog", asked, prompt=settings.prompt).reward == 0.0
    system, user = server.asked[0]["messages"]
    assert system["content"].startswith("You compare the outlines")
    assert "named:\n- a cat\n" in user["content"]
    assert user["content"].endswith("<second>\nFelis catus\n</second>")
