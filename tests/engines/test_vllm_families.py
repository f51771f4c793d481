"""The real vLLM server and other families than the reference: the whole contract, and adapters
(AXPO_VLLM_PYTHON)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from axpo.config import LoraSettings
from axpo.engines.vllm.process import Process
from axpo.engines.vllm.server import start_servers
from axpo.engines.vllm.settings import Vllm
from axpo.models.loading import Checkpoint, load_processor
from axpo.models.lora import adapted_layers, add_adapters
from tests.support.engine_contract import Writer, ask, run
from tests.support.families import family_checkpoint
from tests.support.vllm_server import HEAD, PYTHON, ServerContract, differences, engine_at, real

KINDS = os.environ.get("AXPO_VLLM_KINDS", "llama qwen3 qwen2_5_vl").split()
"""By default not Qwen2.5, which is the text model of Qwen2.5-VL: each family takes a server."""
LORA = LoraSettings(rank=8, alpha=16)


def serving(kind: str, folder: Path, lora: LoraSettings | None = None) -> Process:
    """A server of the family's tiny model, which is saved in `folder`."""
    family_checkpoint(kind, 0, HEAD).save(folder / "model")
    settings = Vllm(python=PYTHON, slots=64, max_length=4096)
    processor = load_processor(folder / "model")
    (process,) = start_servers(settings, processor, "float32", folder / "logs", lora)
    return process


@pytest.fixture(scope="module", params=KINDS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Process]]:
    process = serving(request.param, tmp_path_factory.mktemp(request.param))
    yield request.param, process
    process.stop()


@real
class TestContract(ServerContract):
    @pytest.fixture(autouse=True)
    def _server(self, served: tuple[str, Process], tmp_path: Path) -> None:
        (self.kind, self.server), self.folder = served, tmp_path

    def tiny(self, seed: int) -> Checkpoint:
        return family_checkpoint(self.kind, seed, HEAD)


@real
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_served(kind: str, tmp_path: Path) -> None:
    checkpoint = family_checkpoint(kind, 0, HEAD)
    add_adapters(checkpoint.model, LORA, "tiny", 0)
    server = serving(kind, tmp_path, LORA)
    try:
        writer, engine = Writer(checkpoint, 0), engine_at(server, checkpoint, tmp_path)
        requests = writer.again(writer.request(max_tokens=20), 4, max_tokens=20)

        async def main() -> None:
            for version in (1, 2):
                source = torch.Generator().manual_seed(version)
                for layer in adapted_layers(checkpoint.model).values():
                    up = layer.lora_B["default"].weight
                    up.data.copy_(torch.randn(up.shape, generator=source) * 0.05)
                await engine.load_weights(checkpoint.model.state_dict(), version)
                done = await ask(engine, requests)
                for request, completion in zip(requests, done, strict=True):
                    assert set(completion.versions) == {version}
                    assert max(differences(checkpoint, request, completion)) < 3e-5

        run(main())
    finally:
        server.stop()
