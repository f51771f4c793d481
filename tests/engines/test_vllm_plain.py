"""A plain vLLM server of another model than that of `model.path`, measured alone
(AXPO_VLLM_PYTHON): nothing of axpo is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.config import parse_config
from axpo.engines.base import Completion, Request, Start
from axpo.engines.vllm.process import ServerProcess, find_installation, free_port, start_all
from axpo.engines.vllm.server import cpu_arguments
from axpo.engines.vllm.settings import Vllm
from axpo.models.loading import load_processor
from tests.support.engine_contract import Writer, ask, difference, run
from tests.support.runs import Lines, evaluate
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_server import HEAD, PYTHON, real

SERVED = tiny_checkpoint(1, HEAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The served model, and `here`: a smaller model's folder without weights."""
    folder = tmp_path_factory.mktemp("plain")
    SERVED.save(folder / "served")
    tiny_checkpoint(0).save(folder / "here")
    (folder / "here" / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    options = [
        "--model", str(folder / "served"), "--served-model-name", "large", "--host", "127.0.0.1",
        "--max-model-len", "4096", "--enable-scale-out", "--dtype", "float32", *cpu_arguments(4096),
    ]  # fmt: skip
    process = ServerProcess(find_installation(PYTHON), options, free_port(), folder / "log")
    start_all([process], 300, "engine")
    yield process
    process.stop()


@real
def test_it_samples_what_it_serves(server: ServerProcess, folder: Path) -> None:
    """Its logprobs are those of vLLM's default: without ban, temperature and penalty."""
    processor = load_processor(folder / "here")
    engine = Vllm(urls=(server.url,), slots=8).start(Start(processor, None, folder, 256, "float32"))
    writer = Writer(SERVED, 0)
    decoding = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}

    async def main() -> list[tuple[Request, Completion]]:
        assert await engine.serves() == f"large ({folder / 'served'})"
        first = writer.again(writer.request(sizes=(64, (48, 64))), 6, max_tokens=24, **decoding)
        pairs = list(zip(first, await ask(engine, first), strict=True))
        later = [writer.follow(*pair, (64,), max_tokens=24, **decoding) for pair in pairs]
        pairs += zip(later, await ask(engine, later), strict=True)
        await engine.close()
        return pairs

    for request, done in run(main()):
        assert not set(done.tokens) & set(request.sampling.banned)
        free = {"banned": (), "temperature": 1.0, "presence_penalty": 0.0}
        raw = replace(request, sampling=replace(request.sampling, **free))
        assert difference(SERVED, raw, done) < 3e-5


@real
def test_an_evaluation_of_it(server: ServerProcess, folder: Path, tmp_path: Path) -> None:
    config = parse_config(
        {
            "rollout": {
                "max_turns": 2, "max_turn_tokens": 24, "max_tokens": 96, "temperature": 0.7,
                "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5,
            },
            "eval": {"questions": 4, "samples": 4, "k": 2, "load": False},
            "engine": {"name": "vllm", "urls": [server.url]},
        }
    )  # fmt: skip
    result = evaluate(config, folder / "here", tmp_path, Lines())
    assert (result["questions"], result["unscored"]) == (4, 0)
    assert result["model"] == f"large ({folder / 'served'})"
    noted = json.loads((tmp_path / "evaluation/identity.json").read_text())
    assert noted["served model"] == result["model"]
