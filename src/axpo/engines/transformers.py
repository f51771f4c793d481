"""The in-process engine: transformers' own model, batched over every request in flight.

One asyncio task serves all requests. A round admits waiting requests, prefills their new tokens,
and computes one token for every running row; between rounds the agents' coroutines run. It uses
no thread and no clock, so the same requests in the same order give the same result. Weights may be
shared with a trainer in the same process: only `load_weights` writes to them.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Iterable, Mapping, Sequence

import torch

from axpo.clock import waiting
from axpo.engines.base import Completion, Engine, Request
from axpo.engines.jobs import Job, accept, prefill_batches, too_long
from axpo.engines.kv import SlotMemory
from axpo.engines.runner import Runner
from axpo.engines.sampling import Sampler
from axpo.engines.sharing import Shared, can_share, shared_prompts
from axpo.engines.slots import SlotPool
from axpo.engines.stats import EngineStats
from axpo.engines.weights import copy_weights
from axpo.errors import EngineError
from axpo.models.loading import Checkpoint
from axpo.models.vision import Pixels

TURNS = 8
"""Turns of the event loop between two rounds. Several turns pass between a tool's answer and the
next request (measured: 0.04 s instead of 0.30 s per call beside 64 rows)."""
PATIENCE = 4
"""How many rounds a few requests wait for others while many rows run, because a prefill and a
vision call cost about as much for one request as for several."""


class TransformersEngine(Engine):
    """An engine that samples with the model of `checkpoint`.

    At most `slots` sequences are kept or run at once; further requests wait. `max_prefill_tokens`
    bounds one prefill call, padding included (a longer request goes alone).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        slots: int = 256,
        max_prefill_tokens: int = 4096,
    ) -> None:
        model = checkpoint.model
        self._processor, self._model = checkpoint.processor, model
        self._slots = slots
        self._max_prefill = max_prefill_tokens
        self._memory = SlotMemory(model.config.get_text_config(), slots, model.dtype, model.device)
        self._pool = SlotPool(self._memory, slots)
        self._runner = Runner(model, self._memory)
        self._waiting: list[Job] = []  # Jobs are in the order in which they get a row.
        self._running: list[Job] = []  # Row i of the memory computes for _running[i].
        self._sampler: Sampler | None = None
        self._shared: Shared | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._patience = PATIENCE
        self.stats = EngineStats()

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; raises `RequestError` or `EngineError`."""
        if self._closed:
            raise EngineError(f"request {request.id}: the engine is closed")
        loop = asyncio.get_running_loop()
        with waiting() as wait:
            job = accept(request, self._processor, loop.create_future(), wait)
            self.stats.requests += 1
            bisect.insort(self._waiting, job, key=lambda job: -job.request.priority)
            if self._task is None or self._task.done() or self._task.get_loop() is not loop:
                self._task = loop.create_task(self._serve())
            try:
                return await job.future
            except asyncio.CancelledError:
                self._cancel(job)
                raise

    async def release(self, group: str) -> None:
        """Forget everything that is kept for `group`; its requests in flight go on."""
        self._pool.release(group)

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Sample with `weights` (a state dict of the model) from now on; all caches are dropped.

        Tensors that the model shares are left alone. Raises `EngineError` while requests are in
        flight and `ValueError` for names or shapes that do not fit, with nothing changed.
        """
        if self._waiting or self._running:
            raise EngineError(
                f"weights {version}: {len(self._waiting) + len(self._running)} requests are in "
                "flight; await or cancel them first"
            )
        copy_weights(self._model, weights)
        self.version = version
        self._pool.clear()
        self._runner.forget_features()
        if self._model.device.type != "cpu":
            # The training step needs a GPU's memory. On a CPU new pages are expensive.
            self._memory.free()

    async def close(self) -> None:
        """Stop; pending requests raise `EngineError`."""
        self._closed = True
        self._abandon("the engine was closed")

    # ------------------------------------------------------------------ the loop

    async def _serve(self) -> None:
        try:
            while self._waiting or self._running:
                with torch.inference_mode():
                    self._round()
                for _ in range(TURNS):
                    await asyncio.sleep(0)
        except Exception as error:
            self._abandon(f"the engine's loop failed: {error!r}")
        finally:
            self._abandon("the engine's loop was cancelled")

    def _round(self) -> None:
        """Admit and prefill until nothing more fits, then compute one token per running row."""
        if self._worth_admitting():
            while wave := self._admit():
                self._prefill(wave)
        if self._running:
            self._step()

    def _worth_admitting(self) -> bool:
        """Whether enough requests wait, or long enough, to interrupt the running rows."""
        if not self._waiting:
            self._patience = PATIENCE
            return False
        self._patience -= 1
        if self._patience >= 0 and len(self._waiting) < len(self._running) / PATIENCE:
            return False
        self._patience = PATIENCE
        return True

    def _admit(self) -> list[Job]:
        """Give waiting jobs a row, in their order; return the jobs to prefill, shortest first.

        A job whose prefix is about to be computed for another job of its group waits for it.
        """
        wave: list[Job] = []
        deferred: list[Job] = []
        # All is reserved at once: growing per request would copy the memory each time.
        self._memory.reserve(
            min(self._slots, len(self._running) + len(self._waiting)),
            max(len(job.tokens) for job in self._waiting) if self._waiting else 0,
        )
        while self._waiting:
            job = self._waiting[0]
            group = job.request.group
            source, ready, soon = self._pool.match(group, job.tokens, job.spans)
            if soon > ready:
                deferred.append(self._waiting.pop(0))
                continue
            slot = self._pool.claim(group, job.tokens, job.spans, source, ready)
            if slot is None:
                break
            job.slot, job.reused = slot, ready
            job.wait.over()
            self.stats.reused += ready
            wave.append(self._waiting.pop(0))
        self._waiting[:0] = deferred
        self.stats.evictions = self._pool.evictions
        wave.sort(key=lambda job: job.pending)
        for job in wave:
            assert job.slot is not None
            self._pool.place(job.slot, len(self._running))
            self._running.append(job)
        self._sampler = None
        return wave

    def _prefill(self, wave: Sequence[Job]) -> None:
        """Compute the pending tokens of `wave`, which are the last running rows, and sample one
        token for each.

        A call that fails makes only its own jobs fail.
        """
        began = time.perf_counter()
        offset = len(self._running) - len(wave)
        over: list[Job] = []
        try:
            pictures: dict[str, Pixels] = {}
            for job in wave:
                pictures |= job.new_pictures()
            self.stats.pictures += self._runner.encode(pictures) if pictures else 0
        except Exception as error:
            self._fail(wave, error)
            return
        encoded = time.perf_counter()
        self.stats.seconds_vision += encoded - began
        failures: list[tuple[Sequence[Job], Exception]] = []
        for first, jobs in prefill_batches(wave, self._max_prefill):
            try:
                logits = self._runner.prefill(offset + first, [job.piece() for job in jobs])
                for job in jobs:
                    assert job.slot is not None
                    job.slot.length = len(job.tokens)
                over += self._sample(jobs, logits, _sampler(jobs, logits.device))
            except Exception as error:
                failures.append((jobs, error))
                continue
            self.stats.prefill_calls += 1
            self.stats.prefilled += sum(job.pending for job in jobs)
        self._finish(over)
        for jobs, error in failures:
            self._fail(jobs, error)
        self.stats.seconds_prefill += time.perf_counter() - encoded

    def _step(self) -> None:
        """Compute one token for every running row."""
        began = time.perf_counter()
        jobs = self._running
        steps = [len(job.sampled) - 1 for job in jobs]
        try:
            if self._sampler is None:  # There are other rows than in the last step.
                self._sampler = _sampler(jobs, self._model.device)
                if can_share(self._model):
                    self._shared = shared_prompts(self._pool.slots[: len(jobs)])
            logits = self._runner.step(
                [job.sampled[-1] for job in jobs],
                [len(job.tokens) + n for job, n in zip(jobs, steps, strict=True)],
                [job.next_position + n for job, n in zip(jobs, steps, strict=True)],
                self._shared,
            )
            for slot in self._pool.slots[: len(jobs)]:
                slot.length += 1
            over = self._sample(jobs, logits, self._sampler)
        except Exception as error:
            self._fail(list(jobs), error)
            return
        self.stats.decode_calls += 1
        self.stats.decoded += len(jobs)
        self._finish(over)
        self.stats.seconds_decode += time.perf_counter() - began

    def _sample(self, jobs: Sequence[Job], logits: torch.Tensor, sampler: Sampler) -> list[Job]:
        """Add a token to each job from `logits` [n, V]; return the jobs that are done."""
        tokens, logprobs = sampler(logits, [job.random.random() for job in jobs])
        if count := max(job.request.sampling.top_logprobs for job in jobs):
            for job, highest in zip(jobs, sampler.top(logits, count).tolist(), strict=True):
                job.record_top(highest)
        sampler.add(tokens)
        self.stats.sampled += len(jobs)
        # One transfer serves both, which are exact in float64.
        drawn, scores = torch.stack([tokens.double(), logprobs.double()]).tolist()
        pairs = zip(jobs, drawn, scores, strict=True)
        return [job for job, token, logprob in pairs if job.record(int(token), logprob)]

    # ------------------------------------------------------------------ endings

    def _finish(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if not job.finite:
                self._fail([job], ArithmeticError("the logits are not finite"))
                continue
            self._retire(job, keep=True)
            if job.future.done():
                continue
            if job.beyond:
                asked = len(job.request.tokens)
                said = too_long(asked + len(job.sampled), asked + job.room)
                job.future.set_exception(EngineError(f"request {job.request.id}: {said}"))
            else:
                job.future.set_result(job.completion(self.version))

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            self._retire(job, keep=False)
            if not job.future.done():
                failure = EngineError(f"request {job.request.id}: {error!r}")
                failure.__cause__ = error
                job.future.set_exception(failure)

    def _cancel(self, job: Job) -> None:
        """Free the row of a cancelled request."""
        if job.slot is not None:
            self._retire(job, keep=True)
        elif job in self._waiting:
            self._waiting.remove(job)

    def _retire(self, job: Job, keep: bool) -> None:
        """End a running job; with `keep` its keys and values stay for later requests."""
        slot, job.slot = job.slot, None
        assert slot is not None
        row = slot.row
        with torch.inference_mode():
            if keep:
                slot.tokens += job.sampled[:-1]  # Nothing was computed for the last one.
            else:
                self._memory.wipe(row)
                self._pool.forget(slot)
            self._pool.retire(slot)
        last = self._running.pop()
        if last is not job:
            self._running[row] = last
        self._sampler = None

    def _abandon(self, reason: str) -> None:
        """Fail everything in flight and drop everything that is kept."""
        jobs = [*self._waiting, *self._running]
        self._waiting.clear()
        self._running.clear()
        if jobs or self._closed:
            self._pool.clear()
            self._memory.free()  # An interrupted pass may have left NaN in it.
        for job in jobs:
            job.slot = None
            if not job.future.done():
                job.future.set_exception(EngineError(f"request {job.request.id}: {reason}"))


def _sampler(jobs: Sequence[Job], device: torch.device) -> Sampler:
    settings = [job.request.sampling for job in jobs]
    return Sampler(settings, device, [job.sampled for job in jobs])
