"""What every engine must do, as two suites to derive from.

`EngineBehaviour` needs no model: stops, limits, errors, cancellation, versions. `EngineParity`
adds the numbers: each sampled logprob against a fresh forward pass over the whole path, by
transformers' own code alone. A subclass provides `make` (and `checkpoint`, of the weights that
`make` starts with). The negative controls show that the tolerance would notice a mistake.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch

from axpo.clock import Clock
from axpo.engines.base import Completion, Engine, Finish, Picture, Request, Sampling
from axpo.errors import EngineError, RequestError
from axpo.models.loading import Checkpoint
from axpo.pictures import picture_digest
from tests.support.tiny import tiny_checkpoint, tiny_picture

WORDS = 250
"""Ids below are words of the tiny vocabulary; none is special."""

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` with a limit: a request that is never answered fails instead of hanging."""
    return asyncio.run(asyncio.wait_for(main, timeout=60))


class Writer:
    """Writes prompts and observations of random words and pictures for the tiny checkpoint."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self.checkpoint = checkpoint
        self.random = random.Random(seed)

    def id(self, token: str) -> int:
        id = self.checkpoint.processor.tokenizer.convert_tokens_to_ids(token)
        assert isinstance(id, int)
        return id

    @property
    def call(self) -> int:
        """The token behind which calls are cut: the tag's, or a word where none is a tag."""
        tag = "<tool_call>"
        return self.id(tag) if tag in self.checkpoint.processor.tokenizer.get_vocab() else 7

    def words(self, count: int) -> tuple[int, ...]:
        return tuple(self.random.randrange(WORDS) for _ in range(count))

    def pictures(self, sizes: Iterable[Any]) -> tuple[Picture, ...]:
        """Pictures of these sizes; none for a model without eyes."""
        return tuple(map(self.picture, sizes if self.checkpoint.processor.family.sees else ()))

    def picture(self, size: int | tuple[int, int] = 64) -> Picture:
        image = tiny_picture(self.random.randrange(10**6), size)
        return Picture(picture_digest(image), image)

    def shown(self, pictures: Iterable[Picture], words: int = 6) -> tuple[int, ...]:
        """Words, then each picture's placeholders in their tags, then words."""
        tokens = self.words(words)
        for picture in pictures:
            width, height = picture.image.size
            placeholders = (self.checkpoint.processor.image_token,) * (width // 16 * (height // 16))
            tokens += (self.id("<|vision_start|>"), *placeholders, self.id("<|vision_end|>"))
        return tokens + self.words(words)

    def sampling(self, max_tokens: int = 12, **settings: Any) -> Sampling:
        settings.setdefault("seed", self.random.randrange(10**6))
        settings.setdefault("stop", self.checkpoint.processor.stop)
        settings.setdefault("banned", self.checkpoint.processor.banned)
        return Sampling(max_tokens, **settings)

    def request(self, group: str = "g", sizes: Sequence[Any] = (64,), **settings: Any) -> Request:
        """A first turn of a new prompt with pictures of `sizes` pixels."""
        pictures = self.pictures(sizes)
        tokens = self.shown(pictures, self.random.randrange(4, 12))
        return Request(f"{group}/0", group, tokens, pictures, self.sampling(**settings))

    def again(self, request: Request, count: int, **settings: Any) -> list[Request]:
        """`count` requests like `request` with seeds of their own."""
        return [
            Request(
                f"{request.group}/{i}",
                request.group,
                request.tokens,
                request.pictures,
                self.sampling(**settings),
            )
            for i in range(count)
        ]

    def follow(
        self, request: Request, done: Completion, sizes: Sequence[Any] = (48,), **settings: Any
    ) -> Request:
        """The next turn of `request`: what it sampled, then an observation with pictures."""
        pictures = self.pictures(sizes)
        tokens = request.tokens + done.tokens + self.shown(pictures, 3)
        return Request(
            request.id + "+",
            request.group,
            tokens,
            request.pictures + pictures,
            self.sampling(**settings),
        )


def fresh_logprobs(
    checkpoint: Checkpoint,
    tokens: Sequence[int],
    pictures: Sequence[Picture],
    sampling: Sampling,
    arange: bool = False,
    prompt: int = 0,
) -> torch.Tensor:
    """Oracle: log-probabilities [L, V] of the next token over one whole path, computed alone.

    `arange` gives every token a wrong position: its index, as a text model would, and for a text
    model twice its index. The presence penalty counts the tokens after the first `prompt` ones.
    """
    model, ids = checkpoint.model, torch.tensor([tokens])
    if checkpoint.processor.family.sees:
        logits = _seen_logits(checkpoint, ids, pictures, arange)
    else:
        positions = torch.arange(len(tokens))[None] * (2 if arange else 1)
        with torch.no_grad():
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
    logits[:, list(sampling.banned)] = float("-inf")
    for at in range(prompt, len(tokens)):
        logits[at, list({*tokens[prompt : at + 1]})] -= sampling.presence_penalty
    return (logits / (sampling.temperature or 1.0)).log_softmax(-1)


def _seen_logits(
    checkpoint: Checkpoint, ids: torch.Tensor, pictures: Sequence[Picture], arange: bool
) -> torch.Tensor:
    """Logits [L, V] of a model with eyes."""
    model = checkpoint.model
    inputs: dict[str, Any] = {"mm_token_type_ids": (ids == checkpoint.processor.image_token).int()}
    if pictures:
        images = [picture.image for picture in pictures]
        inputs |= checkpoint.processor.image_processor(images=images, return_tensors="pt")
    grids = inputs.get("image_grid_thw")
    positions, _ = model.model.get_rope_index(ids, inputs["mm_token_type_ids"], grids)
    if arange:
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    vision = model.model.visual.config
    implementation, vision._attn_implementation = vision._attn_implementation, "sdpa"
    with torch.no_grad():
        out = model(input_ids=ids, position_ids=positions, use_cache=False, **inputs)
    vision._attn_implementation = implementation
    return out.logits[0].float()


def difference(
    checkpoint: Checkpoint,
    request: Request,
    done: Completion,
    pictures: Sequence[Picture] | None = None,
    arange: bool = False,
) -> float:
    """Largest difference between the engine's logprobs and the oracle's (nats)."""
    path = request.tokens + done.tokens
    shown = request.pictures if pictures is None else pictures
    logprobs = fresh_logprobs(
        checkpoint, path, shown, request.sampling, arange, len(request.tokens)
    )
    rows = torch.arange(len(request.tokens) - 1, len(path) - 1)
    expected = logprobs[rows, torch.tensor(done.tokens)]
    return (expected - torch.tensor(done.logprobs)).abs().max().item()


async def ask(engine: Engine, requests: Iterable[Request]) -> list[Completion]:
    """All at once."""
    return list(await asyncio.gather(*(engine.generate(request) for request in requests)))


class EngineBehaviour:
    """Needs `make`; samples are whatever the engine samples, but it must sample words too."""

    logprobs = True
    """Whether the engine knows the logprobs of what it samples."""
    in_order = True
    """Whether requests that are sent at once reach what serves them in that order."""

    def tiny(self, seed: int) -> Checkpoint:
        """The checkpoint that is sampled from; an engine that needs another shape overrides it."""
        return tiny_checkpoint(seed)

    @pytest.fixture
    def checkpoint(self) -> Checkpoint:
        return self.tiny(0)

    @pytest.fixture
    def writer(self, checkpoint: Checkpoint) -> Writer:
        return Writer(checkpoint, 0)

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> Engine:
        """An engine with the weights of `checkpoint`, version 0."""
        raise NotImplementedError

    def test_ends_at_the_limit(self, checkpoint: Checkpoint, writer: Writer) -> None:
        done = run(self.make(checkpoint).generate(writer.request(max_tokens=7, stop=())))
        assert done.finish is Finish.LENGTH
        assert len(done.tokens) == 7
        assert len(done.logprobs) == (7 if self.logprobs else 0)
        assert set(done.versions) == {0}

    def test_ends_with_the_first_stop_id(self, checkpoint: Checkpoint, writer: Writer) -> None:
        stop = tuple(range(0, WORDS, 8))
        first = writer.request(max_tokens=200, stop=stop)
        completions = run(
            ask(self.make(checkpoint), writer.again(first, 8, max_tokens=200, stop=stop))
        )
        for done in completions:
            assert done.finish is Finish.STOP
            assert done.tokens[-1] in stop
            assert not set(done.tokens[:-1]) & set(stop)
        assert len({len(done.tokens) for done in completions}) > 1

    def test_same_seed_same_sample(self, checkpoint: Checkpoint, writer: Writer) -> None:
        requests = writer.again(writer.request(), 6)
        together = run(ask(self.make(checkpoint), requests))
        engine = self.make(checkpoint)
        apart = [run(engine.generate(request)) for request in reversed(requests)]
        assert [d.tokens for d in together] == [d.tokens for d in reversed(apart)]
        assert len({done.tokens for done in together}) == 6

    def test_wrong_placeholders_are_refused(self, checkpoint: Checkpoint, writer: Writer) -> None:
        engine = self.make(checkpoint)
        good = writer.request()
        if not checkpoint.processor.family.sees:
            unseen = replace(good, pictures=(writer.picture(),))
            with pytest.raises(RequestError, match=r"g/0: got 0 runs.*expected 1"):
                run(engine.generate(unseen))
            return
        at = good.tokens.index(checkpoint.processor.image_token)
        fewer = good.tokens[:at] + good.tokens[at + 1 :]
        for tokens, pictures, message in (
            (fewer, good.pictures, "g/0.*15 placeholder.*expected 16"),
            (good.tokens, (), "g/0: got 1 runs.*expected 0"),
            (good.tokens, good.pictures * 2, "g/0: got 1 runs.*expected 2"),
        ):
            with pytest.raises(RequestError, match=message):
                run(engine.generate(Request("g/0", "g", tokens, pictures, good.sampling)))
        assert run(engine.generate(good)).tokens

    def test_impossible_requests_are_refused(self, checkpoint: Checkpoint, writer: Writer) -> None:
        engine = self.make(checkpoint)
        everything = tuple(range(checkpoint.processor.vocabulary))
        sampling = writer.sampling()
        for tokens, settings, message in (
            ((), sampling, "bad: no tokens"),
            ((1, len(everything)), sampling, f"bad: tokens hold id {len(everything)}"),
            ((1,), writer.sampling(banned=everything), "bad: nothing to sample"),
        ):
            with pytest.raises(RequestError, match=message):
                run(engine.generate(Request("bad", "g", tokens, (), settings)))
        with pytest.raises(RequestError, match="max_tokens"):
            writer.sampling(max_tokens=0)

    def test_cancelled_request_makes_room(self, checkpoint: Checkpoint, writer: Writer) -> None:
        endless = writer.request("long", max_tokens=10**6, stop=())
        others = [writer.request(f"g{i}", max_tokens=5) for i in range(3)]
        alone = [run(self.make(checkpoint).generate(request)) for request in others]

        async def main() -> list[Completion]:
            engine = self.make(checkpoint, slots=1)
            task = asyncio.create_task(engine.generate(endless))
            rest = asyncio.create_task(ask(engine, others))
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await rest

        assert [d.tokens for d in run(main())] == [d.tokens for d in alone]

    def test_of_those_that_wait_the_highest_priority_is_next(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """And of equals the first. Whoever came first of all may have found the place free."""
        first = [writer.request(f"g{i}", (), max_tokens=8) for i in range(4)]
        later = replace(writer.request("later", (), max_tokens=8), priority=1)
        order: list[str] = []

        async def main() -> None:
            engine = self.make(checkpoint, slots=1)

            async def one(request: Request) -> None:
                await engine.generate(request)
                order.append(request.group)

            await asyncio.gather(*map(one, [*first, later]))

        run(main())
        assert order.index("later") <= 1
        equals = [group for group in order if group != "later"]
        assert (equals if self.in_order else sorted(equals)) == ["g0", "g1", "g2", "g3"]

    def test_waiting_for_a_place_is_not_working(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """One after the other, so that together they work no longer than it all takes."""
        requests = [writer.request(f"g{i}", (), max_tokens=40, stop=()) for i in range(8)]
        clocks = [Clock(60) for _ in requests]

        async def main() -> float:
            engine = self.make(checkpoint, slots=1)
            await engine.generate(requests[0])

            async def one(clock: Clock, request: Request) -> None:
                async with clock:
                    await engine.generate(request)

            began = time.monotonic()
            await asyncio.gather(*map(one, clocks, requests))
            return time.monotonic() - began

        seconds = run(main())
        assert all(clock.worked > 0 for clock in clocks)
        assert sum(clock.worked for clock in clocks) < 1.5 * seconds  # 4.5, were waiting work
        assert max(clock.waited for clock in clocks) > 0.5 * seconds

    def test_close_fails_what_is_pending(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = self.make(checkpoint)
            task = asyncio.create_task(engine.generate(writer.request(max_tokens=10**6, stop=())))
            await asyncio.sleep(0)
            await engine.close()
            with pytest.raises(EngineError, match="closed"):
                await task
            with pytest.raises(EngineError, match="closed"):
                await engine.generate(writer.request())

        run(main())

    def test_weights_wait_for_requests(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = self.make(checkpoint)
            request = writer.request()
            task = asyncio.create_task(engine.generate(request))
            await asyncio.sleep(0)
            weights = checkpoint.model.state_dict()
            with pytest.raises(EngineError, match="in flight"):
                await engine.load_weights(weights, 3)
            assert set((await task).versions) == {engine.version} == {0}
            await engine.load_weights(weights, 3)
            again = await engine.generate(request)
            assert set(again.versions) == {engine.version} == {3}

        run(main())


class EngineParity(EngineBehaviour):
    """Adds the numbers; `tolerance` is in nats."""

    tolerance = 1e-5
    visible = 1e-2

    def check(
        self, checkpoint: Checkpoint, requests: Sequence[Request], done: Sequence[Completion]
    ) -> None:
        for request, completion in zip(requests, done, strict=True):
            # Logits divided by a temperature below 1 carry their rounding multiplied.
            tolerance = self.tolerance / min(request.sampling.temperature or 1.0, 1.0)
            assert difference(checkpoint, request, completion) < tolerance, request.id

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"banned": ()},
            {"temperature": 0.7},
            {"temperature": 0.7, "top_p": 0.8, "top_k": 9},
            {"temperature": 0.7, "top_p": 0.8, "top_k": 9, "presence_penalty": 1.5},
            {"temperature": 0.0, "presence_penalty": -0.5},
        ],
        ids=["plain", "no ban", "temperature", "truncated", "penalty", "greedy"],
    )
    def test_one_request(self, checkpoint: Checkpoint, writer: Writer, settings: dict) -> None:
        request = writer.request(sizes=(64,), max_tokens=30, stop=(), **settings)
        if not request.sampling.banned:  # a sampled placeholder would be one too many
            request = writer.request(sizes=(), max_tokens=10, stop=(), **settings)
        done = run(self.make(checkpoint).generate(request))
        self.check(checkpoint, [request], [done])

    def test_a_presence_penalty_is_no_small_matter(
        self, checkpoint: Checkpoint, writer: Writer
    ) -> None:
        """An id counts from the token after it on, once, and only if this request sampled it."""
        request = writer.request(max_tokens=40, stop=(), presence_penalty=2.0)
        engine = self.make(checkpoint)

        async def main() -> list[tuple[Request, Completion]]:
            done = await engine.generate(request)
            later = writer.follow(request, done, max_tokens=40, stop=(), presence_penalty=2.0)
            return [(request, done), (later, await engine.generate(later))]

        for asked, done in run(main()):
            self.check(checkpoint, [asked], [done])
            free = replace(asked, sampling=replace(asked.sampling, presence_penalty=0.0))
            assert difference(checkpoint, free, done) > 0.02
            path = asked.tokens + done.tokens  # a penalty on the prompt's ids too
            counted = fresh_logprobs(checkpoint, path, asked.pictures, asked.sampling)
            rows = torch.arange(len(asked.tokens) - 1, len(asked.tokens) + len(done.tokens) - 1)
            found = counted[rows, torch.tensor(done.tokens)] - torch.tensor(done.logprobs)
            assert found.abs().max() > 0.02

    def test_rollouts_of_a_group(self, checkpoint: Checkpoint, writer: Writer) -> None:
        requests = writer.again(writer.request(sizes=(64, (48, 64))), 8, max_tokens=24)
        self.check(checkpoint, requests, run(ask(self.make(checkpoint), requests)))

    def test_ragged_groups(self, checkpoint: Checkpoint, writer: Writer) -> None:
        requests: list[Request] = []
        for i, sizes in enumerate([(64,), (), ((32, 80), 48, 64), (128,), (48,)]):
            requests += writer.again(writer.request(f"g{i}", sizes), 3, max_tokens=5 * i + 3)
        writer.random.shuffle(requests)
        self.check(checkpoint, requests, run(ask(self.make(checkpoint), requests)))

    @pytest.mark.parametrize("slots", [64, 3], ids=["room", "pressure"])
    def test_turns_with_new_pictures(
        self, checkpoint: Checkpoint, writer: Writer, slots: int
    ) -> None:
        async def agent(engine: Engine, first: Request) -> list[tuple[Request, Completion]]:
            done = await engine.generate(first)
            path = [(first, done)]
            for sizes in ((48,), (64, (32, 48))):
                request = writer.follow(*path[-1], sizes, max_tokens=10)
                path.append((request, await engine.generate(request)))
            return path

        async def main() -> list[list[tuple[Request, Completion]]]:
            engine = self.make(checkpoint, slots)
            firsts = [
                request
                for g in "ab"
                for request in writer.again(writer.request(g), 4, max_tokens=15)
            ]
            return await asyncio.gather(*(agent(engine, first) for first in firsts))

        for path in run(main()):
            self.check(checkpoint, *zip(*path, strict=True))

    def test_settings_of_neighbours(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """Rows come and go, each with its own settings; none takes on another's."""
        palette: list[dict[str, Any]] = [
            {"temperature": 0.3},
            {"temperature": 1.7, "banned": (*checkpoint.processor.banned, *range(0, WORDS, 3))},
            {"temperature": 0.0},
            {"top_k": 2, "presence_penalty": 1.0},
        ]

        async def agent(engine: Engine, i: int) -> list[tuple[Request, Completion]]:
            request = writer.request(f"g{i}", (), max_tokens=2 + 3 * i, **palette[i])
            path = [(request, await engine.generate(request))]
            for turn in range(1, 4):
                for _ in range(2 * turn):  # so that rows join in the middle of others
                    await asyncio.sleep(0)
                settings = palette[(i + turn) % 4]
                request = writer.follow(*path[-1], (), max_tokens=2 + 2 * i, **settings)
                path.append((request, await engine.generate(request)))
            return path

        async def main() -> list[list[tuple[Request, Completion]]]:
            engine = self.make(checkpoint)
            return await asyncio.gather(*(agent(engine, i) for i in range(4)))

        for path in run(main()):
            self.check(checkpoint, *zip(*path, strict=True))
            for request, done in path:
                assert not set(done.tokens) & set(request.sampling.banned)
                assert run(self.make(checkpoint).generate(request)).tokens == done.tokens

    def test_forks(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """From a cut behind `<tool_call>`, and in the middle of later text."""

        async def main() -> None:
            engine = self.make(checkpoint)
            call = writer.call
            first = writer.request(max_tokens=40, stop=(call,))
            done = await engine.generate(first)
            # A random model may not call: what was sampled is cut there by hand.
            opened = Completion((*done.tokens[:20], call), (), done.finish, ())
            second = writer.follow(first, opened, (48,), max_tokens=16, stop=())
            after = await engine.generate(second)
            call_end = len(first.tokens) + len(opened.tokens)
            text_end = len(second.tokens) + 7
            path = second.tokens + after.tokens
            forks: list[Request] = []
            for end, pictures in ((call_end, first.pictures), (text_end, second.pictures)):
                source = Request("fork", "g", path[:end], pictures, first.sampling)
                forks += writer.again(source, 4, max_tokens=12)
            self.check(checkpoint, [second, *forks], [after, *await ask(engine, forks)])

        run(main())

    def test_random_trees(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """Turns, forks and restarts at random on few slots: parity whatever was kept."""

        async def main() -> None:
            engine = self.make(checkpoint, slots=5)
            roots = [
                writer.request(f"g{i}", sizes) for i, sizes in enumerate([(64,), (), (48, 32)])
            ]
            known = list(zip(roots, await ask(engine, roots), strict=True))
            for _ in range(6):
                wanted: list[Request] = []
                for _ in range(6):
                    request, done = writer.random.choice(known)
                    if writer.random.random() < 0.5:
                        sizes = writer.random.choice([(), (48,), (32, 64)])
                        wanted.append(writer.follow(request, done, sizes, max_tokens=8))
                    else:
                        end = len(request.tokens) + writer.random.randrange(len(done.tokens))
                        tokens = (request.tokens + done.tokens)[:end]
                        fork = Request(
                            "f", request.group, tokens, request.pictures, request.sampling
                        )
                        wanted += writer.again(fork, 1, max_tokens=8)
                new = list(zip(wanted, await ask(engine, wanted), strict=True))
                self.check(checkpoint, *zip(*new, strict=True))
                known += new

        run(main())

    def test_weights_are_replaced(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """With and without the tied head's own name; stale weights would show."""

        async def main() -> None:
            engine = self.make(checkpoint)
            request = writer.request(max_tokens=20)
            await engine.generate(request)
            for version in (1, 2):
                other = self.tiny(version)
                weights = dict(other.model.state_dict())
                if version == 2:
                    weights.pop("lm_head.weight")
                await engine.load_weights(weights, version)
                done = await engine.generate(request)
                assert set(done.versions) == {version}
                self.check(other, [request], [done])
                stale = self.tiny(version - 1)
                assert difference(stale, request, done) > self.visible

        run(main())

    def test_unfit_weights_change_nothing(self, checkpoint: Checkpoint, writer: Writer) -> None:
        async def main() -> None:
            engine = self.make(checkpoint)
            request = writer.request()
            before = await engine.generate(request)
            other = dict(self.tiny(1).model.state_dict())
            norm = next(name for name in other if name.endswith("model.norm.weight"))
            for wrong, message in (
                ({k: v for k, v in other.items() if k != norm}, f"lack {norm}"),
                (other | {"extra": torch.zeros(1)}, "extra"),
                (other | {norm: torch.zeros(3)}, r"norm.weight.*\(3,\), expected \(\d+,\)"),
            ):
                with pytest.raises(ValueError, match=message):
                    await engine.load_weights(wrong, 1)
            assert engine.version == 0
            assert (await engine.generate(request)).tokens == before.tokens

        run(main())

    def test_banned_ids_are_never_sampled(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """Even where the weights are biased to one of them."""
        banned = checkpoint.processor.banned[0]
        request = writer.request(sizes=(), max_tokens=20)
        with torch.no_grad():
            hidden = checkpoint.model.model(
                input_ids=torch.tensor([request.tokens]), use_cache=False
            ).last_hidden_state[0, -1]
            checkpoint.model.lm_head.weight[banned] = hidden
        free = writer.sampling(banned=())
        assert fresh_logprobs(checkpoint, request.tokens, (), free)[-1, banned].exp() > 0.9
        requests = writer.again(request, 8, max_tokens=20)
        completions = run(ask(self.make(checkpoint), requests))
        assert not any(set(done.tokens) & set(checkpoint.processor.banned) for done in completions)
        self.check(checkpoint, requests, completions)

    def test_greedy_takes_the_best(self, checkpoint: Checkpoint, writer: Writer) -> None:
        request = writer.request(temperature=0.0)
        done = run(self.make(checkpoint).generate(request))
        path = request.tokens + done.tokens
        logprobs = fresh_logprobs(checkpoint, path, request.pictures, request.sampling)
        best = logprobs[len(request.tokens) - 1 : len(path) - 1].argmax(-1)
        assert tuple(best.tolist()) == done.tokens

    def test_negative_controls(self, checkpoint: Checkpoint, writer: Writer) -> None:
        """A wrong position or picture moves logprobs by a thousand times the tolerance."""
        request = writer.request(max_tokens=20)
        done = run(self.make(checkpoint).generate(request))
        assert difference(checkpoint, request, done) < self.tolerance
        assert difference(checkpoint, request, done, arange=True) > self.visible
        if checkpoint.processor.family.sees:
            assert difference(checkpoint, request, done, [writer.picture()]) > self.visible
