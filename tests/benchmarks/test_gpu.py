"""`python -m benchmarks.gpu`: verdicts are collected, limits kept, one failure stops nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from axpo.config import load_config
from benchmarks import gpu
from benchmarks.__main__ import BENCHMARKS
from benchmarks.gpu import PARTS, Command, failed, main


def test_verdicts_are_collected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    parts = {
        "first": (
            Command("good", 60, ("-c", "print('VERDICT it holds: yes, 1.5'); print('and more')")),
            Command("bad", 60, ("-c", "print('VERDICT it fits: NO, 3 of 2', end=''); exit(3)")),
        ),
        "second": (Command("endless", 1, ("-c", "import time; time.sleep(60)")),),
        "third": (Command("last", 60, ("-c", "open('{out}/made', 'w')")),),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "card", lambda: "the GPU: one of paper")
    began = time.monotonic()
    assert main(["--out", str(tmp_path)]) == 1
    assert time.monotonic() - began < 30
    lines = (tmp_path / "verdicts.txt").read_text().splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "ok     the GPU: one of paper",
        "ok     it holds: yes, 1.5",
        "ok     good ran to its end: yes",
        "FAILED it fits: NO, 3 of 2",
        "FAILED bad ran to its end: NO, status 3",
        "FAILED endless ran to its end: NO, stopped after 1 s",
        "ok     last ran to its end: yes",
    ]
    assert (tmp_path / "good.log").read_text().endswith("and more\n")
    assert (tmp_path / "made").is_file()
    assert main(["--out", str(tmp_path), "third"]) == 0
    with pytest.raises(SystemExit):
        main(["fourth"])
    assert "there are first, second, third" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    assert failed(gpu.card())


def test_a_plain_no_is_an_answer():
    assert not failed("a step repeats to the bit: no; differing: 3 logprobs")
    assert failed("one kernel for text: NO; SDPA in text")
    assert failed("compiled attention: WRONG, relative errors out 1.0")


def test_what_the_parts_call_is_there():
    """Each part within five minutes; files, benchmarks and settings exist."""
    for commands in PARTS.values():
        assert sum(command.seconds for command in commands) <= 300
    for command in (c for commands in PARTS.values() for c in commands):
        module, *rest = command.arguments[1:]
        if module == "pytest":
            assert Path(rest[0]).is_file()
        elif module == "benchmarks":
            assert rest[-1] in BENCHMARKS
        elif module == "axpo":
            recipe, settings = rest[1], [x for x in rest if "=" in x]
            assert load_config(Path(recipe), *settings).model.device == "cuda"
