"""The in-process engine: the whole contract, shared computation, and what can go wrong in it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
import torch

from axpo.engines.base import Completion, Request
from axpo.engines.jobs import prefill_batches
from axpo.engines.kv import SlotMemory
from axpo.engines.sampling import Sampler
from axpo.engines.slots import Slot, common_prefix, reusable
from axpo.engines.transformers import TransformersEngine
from axpo.errors import EngineError
from axpo.models.loading import Checkpoint
from axpo.tree import ImageSpan
from tests.support.engine_contract import EngineParity, Writer, ask, difference, fresh_logprobs, run
from tests.support.tiny import tiny_checkpoint


class TestTransformersEngine(EngineParity):
    def make(self, checkpoint: Checkpoint, slots: int = 64) -> TransformersEngine:
        return TransformersEngine(checkpoint, slots, max_prefill_tokens=512)


class TestTopLogprobs:
    def test_parity_with_a_fresh_forward(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """At every token, first and later turns; neighbours ask for other counts or none."""
        counts = (10, 3, 0, 10)
        settings = ({}, {"temperature": 0.5}, {}, {"top_k": 2})
        requests = [
            writer.request(f"g{i}", (64,), max_tokens=9 + i, top_logprobs=count, **more)
            for i, (count, more) in enumerate(zip(counts, settings, strict=True))
        ]

        async def main() -> list[tuple[Request, Completion]]:
            engine = TransformersEngine(checkpoint)
            firsts = list(zip(requests, await ask(engine, requests), strict=True))
            later = [writer.follow(*pair, top_logprobs=10) for pair in firsts]
            return [*firsts, *zip(later, await ask(engine, later), strict=True)]

        for request, done in run(main()):
            path = request.tokens + done.tokens
            logprobs = fresh_logprobs(checkpoint, path, request.pictures, request.sampling)
            count = request.sampling.top_logprobs
            if count == 0:
                assert done.top_logprobs == ()
                continue
            expected = logprobs[len(request.tokens) - 1 : len(path) - 1].topk(count).values
            assert (torch.tensor(done.top_logprobs) - expected).abs().max() < 1e-4
            # Negative control: the next token's are others.
            assert (torch.tensor(done.top_logprobs)[1:] - expected[:-1]).abs().max() > 1e-2

    def test_asking_changes_no_sample(self, checkpoint: Checkpoint, writer: Writer) -> None:
        request = writer.request(max_tokens=20)
        asking = replace(request, sampling=replace(request.sampling, top_logprobs=10))
        plain, asked = (run(TransformersEngine(checkpoint).generate(r)) for r in (request, asking))
        assert (asked.tokens, asked.logprobs) == (plain.tokens, plain.logprobs)

    def test_ids_that_cannot_be_sampled_are_left_out(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        size = checkpoint.model.config.text_config.vocab_size
        banned = (
            *checkpoint.processor.banned,
            *(i for i in range(4, size) if i not in checkpoint.processor.banned),
        )
        request = writer.request(max_tokens=3, banned=banned, top_logprobs=10, stop=())
        done = run(TransformersEngine(checkpoint).generate(request))
        assert [len(highest) for highest in done.top_logprobs] == [4, 4, 4]
        assert sum(math.exp(p) for p in done.top_logprobs[0]) == pytest.approx(1, abs=1e-5)


class TestSharing:
    def test_prompt_and_picture_once_a_group(self, checkpoint: Checkpoint, writer: Writer) -> None:
        engine = TransformersEngine(checkpoint)
        firsts = [writer.request(f"g{i}", (64, 48)) for i in range(3)]
        requests = [request for first in firsts for request in writer.again(first, 8, max_tokens=5)]
        completions = run(ask(engine, requests))
        prompts = sum(len(first.tokens) for first in firsts)
        assert engine.stats.pictures == 6
        # Each of the other seven computes its last prompt token again, for its own first sample.
        assert engine.stats.prefilled == prompts + 3 * 7
        assert engine.stats.reused == 7 * (prompts - 3)
        assert [done.reused for done in completions[:8]] == [0] + [len(firsts[0].tokens) - 1] * 7
        assert engine.stats.sampled == sum(len(done.tokens) for done in completions)
        assert engine.stats.decoded == engine.stats.sampled - len(completions)

    def test_turn_computes_only_what_is_new(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            first = writer.request(max_tokens=9, stop=())
            done = await engine.generate(first)
            second = writer.follow(first, done, (48,), max_tokens=1)
            before = replace(engine.stats)
            after = await engine.generate(second)
            new = len(second.tokens) - len(first.tokens) - len(done.tokens)
            assert engine.stats.prefilled - before.prefilled == new + 1
            assert engine.stats.pictures - before.pictures == 1
            assert after.reused == len(first.tokens) + len(done.tokens) - 1
            # In place: the first turn's row became the second's.
            assert len(engine._pool.slots) == 1

        run(main())

    def test_fork_computes_one_token(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            first = writer.request(max_tokens=20, stop=())
            done = await engine.generate(first)
            cut = Request(
                "cut", "g", first.tokens + done.tokens[:9], first.pictures, first.sampling
            )
            completions = await ask(engine, writer.again(cut, 4, max_tokens=3))
            assert {c.reused for c in completions} == {len(cut.tokens) - 1}

        run(main())

    def test_nothing_is_shared_between_groups_or_pictures(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            first = writer.request()
            await engine.generate(first)
            other = replace(first, group="other")
            assert (await engine.generate(other)).reused == 0
            assert engine.stats.pictures == 1  # features are kept by content
            changed = replace(first, pictures=(writer.picture(64),))
            done = await engine.generate(changed)
            assert done.reused == first.tokens.index(checkpoint.processor.image_token)
            assert difference(checkpoint, changed, done) < 1e-5

        run(main())

    def test_released_groups_are_forgotten(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            first = writer.request(max_tokens=10)
            task = asyncio.create_task(engine.generate(first))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await engine.release("g")  # while running: forgotten when it ends
            await task
            assert (await engine.generate(first)).reused == 0
            await engine.release("g")
            assert (await engine.generate(first)).reused == 0
            assert (await engine.generate(first)).reused == len(first.tokens) - 1

        run(main())

    def test_new_weights_drop_everything(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            request = writer.request()
            await engine.generate(request)
            await engine.load_weights(checkpoint.model.state_dict(), 1)
            assert (await engine.generate(request)).reused == 0
            assert engine.stats.pictures == 2

        run(main())

    def test_eviction_takes_the_oldest(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint, slots=2)
            a, b, c = (writer.request(g) for g in "abc")
            done, _ = await engine.generate(a), await engine.generate(b)
            a = writer.follow(a, done)
            await engine.generate(a)
            await engine.generate(c)
            assert engine.stats.evictions == 1
            assert (await engine.generate(a)).reused > 0
            assert (await engine.generate(b)).reused == 0

        run(main())

    def test_source_of_a_fork_is_not_evicted_for_it(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint, slots=2)
            a, b = writer.request("a"), writer.request("b")
            done, _ = await engine.generate(a), await engine.generate(b)
            await engine.generate(writer.again(a, 1)[0])
            assert (await engine.generate(writer.follow(a, done))).reused > len(a.tokens)
            assert engine.stats.evictions == 1

        run(main())

    def test_features_kept_are_bounded(
        self, checkpoint: Checkpoint, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("axpo.engines.runner.FEATURE_TOKENS", 40)  # two pictures of 16

        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            a, b, c = (writer.request(g) for g in "abc")
            both = replace(
                c,
                tokens=c.tokens + a.tokens + b.tokens,
                pictures=c.pictures + a.pictures + b.pictures,
            )
            encoded: list[int] = []
            for request in (a, b, both, a, c):
                before = engine.stats.pictures
                await engine.release(request.group)
                done = await engine.generate(request)
                assert difference(checkpoint, request, done) < 1e-5
                encoded.append(engine.stats.pictures - before)
            assert encoded == [1, 1, 1, 0, 1]

        run(main())


class TestFaults:
    def test_failing_forward_fails_its_requests_only(
        self, checkpoint: Checkpoint, writer: Writer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = TransformersEngine(checkpoint)
        requests = [writer.request(g, max_tokens=6) for g in "ab"]
        expected = [d.tokens for d in run(ask(engine, requests))]
        for method in ("encode", "prefill", "step"):
            with monkeypatch.context() as patch:

                def fail(*_: object) -> None:
                    raise RuntimeError("out of memory")

                patch.setattr(engine._runner, method, fail)
                run(engine.release("a"))
                run(engine.release("b"))
                for request in requests:
                    with pytest.raises(EngineError, match=f"{request.id}.*out of memory"):
                        run(engine.generate(request))
            assert [d.tokens for d in run(ask(engine, requests))] == expected

    def test_diverged_weights_are_an_error_and_leave_no_trace(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            request = writer.request()
            good = {k: v.clone() for k, v in checkpoint.model.state_dict().items()}
            expected = await engine.generate(request)
            await engine.load_weights({k: v * float("nan") for k, v in good.items()}, 1)
            with pytest.raises(EngineError, match="not finite"):
                await engine.generate(request)
            await engine.load_weights(good, 2)
            assert (await engine.generate(request)).tokens == expected.tokens

        run(main())

    def test_failed_row_does_not_poison_its_successor(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """What a failed pass stored is NaN; masked, NaN is still NaN."""
        engine = TransformersEngine(checkpoint)
        norm = checkpoint.model.model.language_model.layers[0].input_layernorm.weight
        with torch.no_grad():
            norm.fill_(float("nan"))
        with pytest.raises(EngineError, match="not finite"):
            run(engine.generate(writer.request("long", (128,))))
        with torch.no_grad():
            norm.fill_(1.0)
        requests = [writer.request("short", (), max_tokens=4), writer.request("tall", (128,))]
        for request, done in zip(requests, run(ask(engine, requests)), strict=True):
            assert difference(checkpoint, request, done) < 1e-5

    def test_loop_can_end_in_the_middle(self, checkpoint: Checkpoint, writer: Writer) -> None:
        engine = TransformersEngine(checkpoint)
        request = writer.request(max_tokens=10**6, stop=())

        async def main() -> None:
            task = asyncio.create_task(engine.generate(request))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()

        run(main())
        short = writer.request("other", max_tokens=4)
        assert difference(checkpoint, short, run(engine.generate(short))) < 1e-5

    def test_another_event_loop_can_take_over(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """A loop that merely stopped (a notebook's cell) holds nobody up."""
        engine = TransformersEngine(checkpoint)
        stopped = asyncio.new_event_loop()
        task = stopped.create_task(engine.generate(writer.request(max_tokens=10**6, stop=())))
        stopped.run_until_complete(asyncio.sleep(0))
        assert run(engine.generate(writer.request("other"))).tokens
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            stopped.run_until_complete(task)
        stopped.close()

    def test_training_goes_on_after_sampling(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """Nothing of inference mode is left in the shared module."""
        request = writer.request()
        done = run(TransformersEngine(checkpoint).generate(request))
        assert done.tokens
        model = checkpoint.model
        pixels = checkpoint.processor.image_processor(
            images=[p.image for p in request.pictures], return_tensors="pt"
        )
        ids = torch.tensor([request.tokens])
        kinds = (ids == checkpoint.processor.image_token).int()
        model(input_ids=ids, mm_token_type_ids=kinds, **pixels).logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=-1e-9)

    def test_shared_weights_are_not_copied(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """A trainer in the same process has already changed them."""

        async def main() -> None:
            engine = TransformersEngine(checkpoint)
            request = writer.request()
            await engine.generate(request)
            versions = {n: p._version for n, p in checkpoint.model.named_parameters()}
            await engine.load_weights(checkpoint.model.state_dict(), 1)
            assert versions == {n: p._version for n, p in checkpoint.model.named_parameters()}

        run(main())

    def test_tied_weights_that_differ(self, checkpoint: Checkpoint) -> None:
        weights = dict(checkpoint.model.state_dict())
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1
        with pytest.raises(ValueError, match=r"lm_head\.weight.*differ"):
            run(TransformersEngine(checkpoint).load_weights(weights, 1))


class TestParts:
    def test_sampler_follows_the_distribution(self) -> None:
        logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
        settings = Writer(tiny_checkpoint(0), 0).sampling(banned=(3,), temperature=0.8)
        sampler = Sampler([settings] * 20_000)
        uniforms = [(i + 0.5) / 20_000 for i in range(20_000)]
        tokens, logprobs = sampler(logits.expand(20_000, -1), uniforms)
        masked = logits[0].clone()
        masked[3] = float("-inf")
        expected = (masked / 0.8).softmax(-1)
        counts = torch.bincount(tokens, minlength=12) / 20_000
        assert (counts - expected).abs().max() < 1e-4
        assert torch.allclose(logprobs.exp(), expected[tokens], atol=1e-6)

    def test_truncation_keeps_what_it_should(self) -> None:
        logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(4, -1)
        make = Writer(tiny_checkpoint(0), 0).sampling
        rows = [
            make(banned=(), top_k=2),
            make(banned=(), top_p=0.65),
            make(banned=(), top_k=3, top_p=0.75),  # of 0.9 that top-k keeps
            make(banned=(0,), top_p=0.01),
        ]
        allowed = [{0, 1}, {0, 1}, {0, 1}, {1}]
        seen: list[set[int]] = [set() for _ in rows]
        sampler = Sampler(rows)
        for i in range(100):
            tokens, logprobs = sampler(logits, [i / 100] * 4)
            for found, token in zip(seen, tokens.tolist(), strict=True):
                found.add(token)
            assert torch.allclose(logprobs[:3], logits[0, tokens[:3]])
        assert seen == allowed

    def test_extreme_draws_stay_possible(self) -> None:
        make = Writer(tiny_checkpoint(0), 0).sampling
        logits = torch.zeros(2, 6)
        sampler = Sampler([make(banned=(0, 5)), make(banned=(0, 1, 4, 5))])
        assert sampler(logits, [0.0, 0.0])[0].tolist() == [1, 2]
        assert sampler(logits, [1 - 2**-53] * 2)[0].tolist() == [4, 3]

    def test_common_prefix(self) -> None:
        draws = torch.Generator().manual_seed(0)
        for _ in range(200):
            n, m, k = torch.randint(0, 9, (3,), generator=draws).tolist()
            shared = list(range(k))
            assert common_prefix(shared + [100] * n, shared + [200] * m) == k

    def test_reuse_never_cuts_a_picture(self) -> None:
        a, b = ImageSpan("a", 2, 3), ImageSpan("b", 2, 3)
        tokens = [1, 2, 9, 9, 9, 3, 4]
        slot = Slot(0, "g", [*tokens, 5], (a,), 8)
        assert reusable(tokens, (a,), slot) == 6  # the last token is left to compute
        assert reusable([*tokens, 6], (a,), slot) == 7
        assert reusable(tokens, (b,), slot) == 2
        assert reusable(tokens, (a,), slot, common=4) == 2
        assert reusable(tokens[:5], (a,), slot) == 2
        assert reusable(tokens, (a,), Slot(0, "g", tokens[:6], (), 6)) == 2

    def test_prefill_batches_bound_padding(self) -> None:
        class Row:
            def __init__(self, pending: int) -> None:
                self.pending = pending

        rows = [Row(n) for n in (1, 1, 3, 40, 50, 60, 61, 500)]
        batches = [[r.pending for r in some] for _, some in prefill_batches(rows, 150)]  # type: ignore
        assert batches == [[1, 1, 3], [40, 50], [60, 61], [500]]
        assert [first for first, _ in prefill_batches(rows, 150)] == [0, 3, 5, 7]  # type: ignore

    def test_memory_grows_and_keeps(self, checkpoint: Checkpoint) -> None:
        memory = SlotMemory(
            checkpoint.model.config.text_config, 9, torch.float32, torch.device("cpu")
        )
        memory.reserve(2, 10)
        memory.view(1, torch.tensor([[0, 1]]), 2)
        new = torch.randn(1, 2, 2, 16)
        for layer in range(len(memory)):
            memory.update(new, -new, layer)
        memory.reserve(9, 65)
        memory.swap(1, 8, 2, 0)
        memory.view(8, torch.tensor([[2]]), 3)
        keys, values = memory.update(new[:, :, :1], new[:, :, :1], 0)
        assert keys.shape == (1, 2, 3, 16)
        assert torch.equal(keys[:, :, :2], new)
        assert torch.equal(values[:, :, :2], -new)
