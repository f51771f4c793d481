"""A small real HTTP server that speaks vLLM's routes over the in-process engine, in a thread.

It keeps vLLM's manners that a client can trip over: one placeholder a picture in the request, the
expanded prompt in the answer; a picture by its hash alone only while it is in the cache; weights
named "default" until an update names them; a request ends when its connection closes, and a pause
aborts it or keeps its tokens. Of a model with adapters it starts with the weights below them, and
takes adapters alone. It says that it runs `places` requests at once and runs `slots` of
them, all that it says by default (fewer is what memory leaves room for). `faults` are the answers
to the next requests instead of the engine's own. With `hold` a request stands still after so many
tokens until `go` is set. What follows the first token comes in `pieces`, with a `pause` before
each. Beyond `kept_from` updates it says that it took them and keeps its weights. A `plain` one has
nothing of axpo's extension and none of the routes that it needs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import math
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import distributed

from axpo.engines.base import Completion, Finish, Picture, Request, Sampling
from axpo.engines.places import Places
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.checks import ADAPTER, ROUTES, WEIGHTS, TrainedModel, expected_facts
from axpo.engines.vllm.client import GENERATE
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapted_layers
from axpo.models.vision import seen_limits

Fault = Callable[[dict[str, Any]], Any] | tuple[int, str]
"""Changes the parsed answer (returning another, raw bytes, or None to break off), or a status."""


class FakeVllm:
    """Serves `checkpoint` (a copy of its model) on `port`, by default a free one, until `stop`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        places: int = 256,
        slots: int | None = None,
        plain: bool = False,
        port: int = 0,
    ) -> None:
        self.slots = Places(slots or places)
        images = deepcopy(checkpoint.processor.image_processor)
        images.size = seen_limits(images)
        model = deepcopy(checkpoint.model)
        self.started = Checkpoint(replace(checkpoint.processor, image_processor=images), model)
        self.layers = adapted_layers(model)
        self.facts = expected_facts(TrainedModel.of(checkpoint)) | {
            "max_model_len": 10**7, "max_num_seqs": places, "device": "cuda",
            "chunked_prefill": False,
            "lora_rank": 8 if self.layers else 0,
        }  # fmt: skip
        self.models = ["policy", ADAPTER] if self.layers else ["policy"]
        self.unadapted: list[str] = []
        for layer in self.layers.values():
            layer.lora_B["default"].weight.data.zero_()
        self.routes = [GENERATE] if plain else [*ROUTES, WEIGHTS]
        self.routes.append("/health")
        self.plain, self.root = plain, "/models/policy"
        self.faults: deque[Fault] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.calls: list[str] = []
        self.told: list[dict[str, Any]] = []
        self.group: Any = None
        self.hung = False
        self.delay = self.pause = 0.0
        self.pieces = 1
        self.hold = 0
        self.go = asyncio.Event()
        self.held = self.sampling = 0
        self._flying: set[asyncio.Future[Any]] = set()
        self.kept_from: int | None = None
        self._port = port
        self._connections: set[asyncio.StreamWriter] = set()
        self._dying = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen (again, on the same port), with the weights that it was made with."""
        self.reset()
        self.hung = False
        self._do(self._listen())

    def reset(self) -> None:
        """What a restart leaves: the first weights, no picture, nothing in flight."""
        self.weights, self.updating, self.paused = "default", False, False
        self.updates = 0
        self.pictures: dict[str, Picture] = {}
        self.checkpoint = Checkpoint(replace(self.started.processor), deepcopy(self.started.model))
        self.engine = self.make_engine()

    def make_engine(self) -> TransformersEngine:
        """What samples."""
        return TransformersEngine(self.checkpoint, max_prefill_tokens=512)

    def go_on(self) -> None:
        """Let held requests go on, and hold no more."""
        self.hold = 0
        self._loop.call_soon_threadsafe(self.go.set)

    def die(self) -> None:
        """Stop listening and break every connection, as a killed process does."""
        with self._dying:
            self._do(self._close())

    def stop(self) -> None:
        """Die, and end the thread."""
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        with warnings.catch_warnings():  # a test's event loop ends with connections open
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *headers = head.decode().split("\r\n")
                sizes = [h for h in headers if h.lower().startswith("content-length:")]
                size = int(sizes[0].split(":")[1]) if sizes else 0
                body = json.loads(await reader.readexactly(size) or b"{}")
                route, _, query = line.split()[1].partition("?")
                self.calls.append(route)
                while self.hung:
                    await asyncio.sleep(0.05)
                if query == "mode=abort":
                    for work in self._flying:
                        work.cancel()
                answer = await self._answer(route, body, reader, writer)
                if answer is None:
                    return
                status, content = answer
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                writer.write(
                    f"HTTP/1.1 {status} -\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                )
                writer.write(content)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(
        self,
        route: str,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[int, Any] | None:
        """Status and content; None ends the connection: broken off, or a whole stream sent."""
        if route == "/inference/v1/generate":
            return await self._generate(body, reader, writer)
        if route not in self.routes and route in ROUTES:
            return 404, {"detail": "Not Found"}
        return await self._control(route, body)

    def _ids(self, body: dict[str, Any]) -> list[int]:
        text, tokenizer = body.get("prompt", ""), self.started.processor.tokenizer
        return tokenizer.encode(text, add_special_tokens=body.get("add_special_tokens", True))

    async def _control(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        answers: dict[str, Any] = {
            "/version": {"version": "0.0.fake"},
            "/openapi.json": {"paths": {route: {} for route in self.routes}},
            "/v1/models": {"data": [{"id": name, "root": self.root} for name in self.models]},
            "/tokenize": {"tokens": self._ids(body), "max_model_len": self.facts["max_model_len"]},
            "/weight_info": {"weight_version": self.weights},
        }
        if self.plain and route in (*ROUTES, WEIGHTS):
            return 404, {"detail": "Not Found"}
        if route in answers:
            return 200, answers[route]
        if route == "/collective_rpc":
            return self._rpc(body)
        if route == "/pause":
            self.pictures.clear()
            self.paused = True
            while self.sampling:  # until what is in flight stands still
                await asyncio.sleep(0.01)
        elif route == "/resume":
            self.paused = False
        elif route == "/start_weight_update":
            assert not self.updating
            self.updating = True
        elif route == "/update_weights":
            self.updates += 1
            weights: dict[str, torch.Tensor] | None = None
            self.told.append(body["update_info"])
            if "buckets" in body["update_info"]:
                try:
                    weights = await asyncio.to_thread(self._receive, body["update_info"]["buckets"])
                except (RuntimeError, distributed.DistError) as error:
                    self.group, self.updating = None, False
                    return 500, {"detail": str(error)}
            elif self.kept_from is None or self.updates <= self.kept_from:
                paths = body["update_info"]["paths"]
                weights = {k: w for path in paths for k, w in load_file(path).items()}
            if weights is not None and (lora := body["update_info"].get("lora")):
                weights = self._with_adapter(weights, lora["alpha"] / lora["rank"])
            await self.engine.load_weights(weights or self.checkpoint.model.state_dict(), 0)
        elif route == "/init_weight_transfer_engine":
            await asyncio.to_thread(self._join, body["init_info"])
        elif route == "/finish_weight_update":
            self.weights, self.updating = body["weight_version"], False
        return 200, {}

    def _with_adapter(
        self, adapter: dict[str, torch.Tensor], scale: float
    ) -> dict[str, torch.Tensor]:
        """The model's own weights with A and B by the names of PEFT's files."""
        for layer in adapted_layers(self.checkpoint.model).values():
            layer.scaling["default"] = scale
        named = {
            name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
            for name, tensor in adapter.items()
        }
        own = self.checkpoint.model.state_dict()
        assert named.keys() == {name for name in own if ".lora_" in name}
        return own | named

    def _join(self, info: dict[str, Any]) -> None:
        """As a worker does (`axpo.engines.vllm.worker`, which needs vLLM)."""
        limit = timedelta(seconds=30)
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            info["host"], info["port"], info["ranks"], is_master=False, timeout=limit
        )
        self.group = distributed.ProcessGroupGloo(store, 1, info["ranks"], limit)

    def _receive(self, buckets: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for bucket in buckets:
            dtypes = [getattr(torch, tensor["dtype"]) for tensor in bucket]
            sizes = [
                math.prod(t["shape"]) * d.itemsize for t, d in zip(bucket, dtypes, strict=True)
            ]
            whole = torch.empty(sum(sizes), dtype=torch.uint8)
            self.group.broadcast(whole, 0).wait()
            for tensor, dtype, part in zip(bucket, dtypes, whole.split(sizes), strict=True):
                found[tensor["name"]] = part.clone().view(dtype).view(tensor["shape"])
        return found

    def _rpc(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["method"] == "axpo_facts":
            return 200, {"results": [self.facts]}
        if body["method"] == "axpo_unadapted":
            return 200, {"results": [self.unadapted]}
        paths = [Path(path) for path in body["args"]]
        sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
        return 200, {"results": [sizes]}

    async def _generate(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, Any] | None:
        self.bodies.append(body)
        assert not (self.plain and body["priority"])
        assert body["model"] == self.models[-1]
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, tuple):
            return fault
        parts = body.get("content_parts", [])
        for i, part in enumerate(parts):
            if part["url"] is None and part["uuid"] not in self.pictures:
                message = f"Cache miss for image at index {i} but data is not provided."
                return 400, {"error": {"message": message}}
        request = self._request(body)
        async with self.slots.take(request.priority):
            return await self._say(request, fault, reader, writer)

    async def _say(
        self,
        request: Request,
        fault: Callable[[dict[str, Any]], Any] | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[int, Any] | None:
        if fault is None:
            await self._first_token(request, writer)
        work = asyncio.ensure_future(self._sample(request))
        gone = asyncio.ensure_future(reader.read(1))
        self._flying.add(work)
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.aborted.append(request.id)
                return None
        finally:
            self._flying.discard(work)
            work.cancel()
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        if work.cancelled():
            return 503, {"error": {"message": "aborted by a pause"}}
        answer = self._complete(request, *work.result())
        if fault is not None:
            answer = fault(answer)
            if isinstance(answer, dict):
                answer = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode()
            return None if answer is None else (200, answer)
        await self._stream_rest(answer, writer)
        return None

    async def _first_token(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """What a stream begins with; same seed, same token."""
        one = replace(request, sampling=replace(request.sampling, max_tokens=1))
        first = self._complete(request, await self._engine(one), [])
        first["choices"][0] |= {"finish_reason": None, "weight_versions": None}
        writer.write(b"HTTP/1.1 200 -\r\nConnection: close\r\n\r\n")
        _part(writer, {name: first[name] for name in ("prompt_token_ids", "choices")})
        with contextlib.suppress(ConnectionError):  # gone already; `_generate` sees to that
            await writer.drain()

    async def _stream_rest(self, answer: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """The other tokens, the counts, and the end."""
        (choice,) = answer["choices"]
        ids, scored = choice["token_ids"][1:], choice["logprobs"]["content"][1:]
        each = -(-max(1, len(ids)) // self.pieces)
        for at in range(0, max(1, len(ids)), each):
            await asyncio.sleep(self.pause)
            said = {"content": scored[at : at + each]}
            _part(
                writer, {"choices": [choice | {"token_ids": ids[at : at + each], "logprobs": said}]}
            )
            await writer.drain()
        _part(writer, {"choices": [], "usage": answer["usage"]})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    async def _sample(self, request: Request) -> tuple[Completion, list[str]]:
        """The completion and the weights of each token."""
        await asyncio.sleep(self.delay)
        if not 0 < self.hold < request.sampling.max_tokens:
            done = await self._engine(request)
            return done, [self.weights] * len(done.tokens)
        sampling, hold = request.sampling, self.hold
        some = replace(request, sampling=replace(sampling, max_tokens=hold))
        first = await self._engine(some)
        names = [self.weights] * len(first.tokens)
        if first.finish is Finish.STOP:
            return first, names
        self.held += 1
        await self.go.wait()
        others = replace(sampling, max_tokens=sampling.max_tokens - hold, seed=sampling.seed + 1)
        tokens = request.tokens + first.tokens
        rest = await self._engine(replace(request, tokens=tokens, sampling=others))
        whole = replace(
            rest,
            tokens=first.tokens + rest.tokens,
            logprobs=first.logprobs + rest.logprobs,
            reused=first.reused,
        )
        return whole, names + [self.weights] * len(rest.tokens)

    async def _engine(self, request: Request) -> Completion:
        while self.paused:
            await asyncio.sleep(0.01)
        self.sampling += 1
        try:
            return await self.engine.generate(request)
        finally:
            self.sampling -= 1

    def _request(self, body: dict[str, Any]) -> Request:
        """The request with placeholders expanded by this side's own processor."""
        shown: list[Picture] = []
        for part in body.get("content_parts", []):
            if part["url"] is not None:
                data = base64.b64decode(part["url"].partition(",")[2])
                picture = Picture(part["uuid"], Image.open(io.BytesIO(data)).convert("RGB"))
                self.pictures[part["uuid"]] = picture
            shown.append(self.pictures[part["uuid"]])
        tokens: list[int] = []
        waiting = iter(shown)
        checkpoint = self.checkpoint
        for token in body["token_ids"]:
            count = 1
            if token == checkpoint.processor.image_token:
                picture = next(waiting)
                pixels = checkpoint.processor.pixels(picture.digest, picture.image)
                count = pixels.tokens(checkpoint.processor.merge_size)
            tokens += [token] * count
        said = body["sampling_params"]
        sampling = Sampling(
            max_tokens=said["max_tokens"], seed=said["seed"], stop=tuple(said["stop_token_ids"]),
            banned=tuple(int(id) for id in said["logit_bias"]), temperature=said["temperature"],
            top_p=said["top_p"], top_k=said["top_k"], presence_penalty=said["presence_penalty"],
        )  # fmt: skip
        id, priority = body["request_id"], -body["priority"]
        return Request(id, "all", tuple(tokens), tuple(shown), sampling, priority)

    def _complete(self, request: Request, done: Completion, names: list[str]) -> dict[str, Any]:
        spans = [
            {"version": name, "start": names.index(name), "end": names.index(name) + count}
            for name, count in Counter(names).items()
        ]
        scored = zip(done.tokens, done.logprobs, strict=True)
        return {
            "request_id": request.id,
            "prompt_token_ids": list(request.tokens),
            "usage": {"prompt_tokens_details": {"cached_tokens": done.reused}},
            "choices": [
                {
                    "finish_reason": done.finish.value,
                    "token_ids": list(done.tokens),
                    "logprobs": {"content": [{"token_id": t, "logprob": p} for t, p in scored]},
                    "weight_versions": spans,
                }
            ],
        }


def _part(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    writer.write(f"data: {json.dumps(content)}\n\n".encode())
