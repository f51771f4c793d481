"""Examples and observations become token ids, and sampled ids text, as the model's family writes.

This module owns the conventions of a rollout's text. The family's page (`Wire`) writes it with one
placeholder per picture; here the placeholder becomes as many tokens as our own preprocessing gives
the picture, so that pictures are preprocessed once, with the pixel cap that engine and trainer use.
Sampled tokens are never rendered again: an observation is only what follows them.

Thinking. Where turns start inside thinking, the generation prompt has opened it (it is part of the
prompt or observation segment, so never trained).
The chat template tells whether a checkpoint thinks; a checkpoint without a template is refused.
All past thinking stays on the path, as the family's template keeps it within a tool loop.

Text from outside (questions, tool results) cannot open or close anything: if it spells a control
token, a space is put into it (`control`). A tool's spec that spells one is refused, because a spec
must stand in the prompt unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from axpo.chat.control import ControlText
from axpo.chat.parsing import ParsedTurn
from axpo.engines.base import Picture
from axpo.errors import CheckpointError, ConfigError, RenderingError
from axpo.models.loading import Processor
from axpo.pictures import as_rgb, picture_digest
from axpo.tasks.base import IMAGE, Example
from axpo.tools.base import Observation, Tool
from axpo.tree import ImageSpan, Origin, Segment

Shown = TypeVar("Shown", bound=Observation)


def as_picture(image: Any) -> Picture:
    """An RGB picture with its content hash."""
    rgb = as_rgb(image)
    return Picture(picture_digest(rgb), rgb)


class Rendering:
    """Renders prompts and observations for one processor and one set of tools.

    Raises `ConfigError` for a tool whose spec spells a control token or that needs eyes which the
    model does not have, and `CheckpointError` for a tokenizer without a chat template.
    """

    def __init__(
        self,
        processor: Processor,
        tools: Mapping[str, Tool],
        system: str | None = None,
    ) -> None:
        self.tokenizer: Any = processor.tokenizer
        self.vocabulary = processor.vocabulary
        self.banned = processor.banned
        self.stop = processor.stop
        self.tools = tools
        if not self.tokenizer.chat_template:
            raise CheckpointError(
                f"{processor.path}: no chat template, so nothing tells whether its turns begin in "
                "thinking; put the model's chat_template.jinja (or chat_template.json) beside its "
                "tokenizer"
            )
        try:
            self._wire = processor.family.wire(self.tokenizer, self.stop)
        except CheckpointError as error:
            raise CheckpointError(f"{processor.path}: {error}") from None
        self.sees = processor.family.sees
        self.thinking = self._wire.thinking
        self._text = ControlText(self.tokenizer)
        if processor.family.absolute:
            for tool in tools.values():
                tool.measure(processor.seen_size)
        self._specs: list[Any] = [tool.spec for tool in tools.values()]
        blind = [name for name, tool in tools.items() if tool.needs_eyes and not self.sees]
        if blind:
            raise ConfigError(
                f"rollout.tools: {', '.join(blind)} shows pictures, and the model at "
                f"{processor.path} takes none: leave it out, or name a model with eyes as "
                "model.path"
            )
        for name, spec in zip(tools, self._specs, strict=True):
            if (spelled := self._text.spelled(spec)) is not None:
                raise ConfigError(
                    f"tool {name!r}: its spec spells the control token {spelled}, which would "
                    "change what the prompt says; leave this tool out or change its text"
                )
        self._system = system
        self._processor = processor
        self._image_token = processor.image_token
        self._generation_prompt = self._wire.generation_prompt
        self._turn_end = self._wire.turn_end

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`; control tokens that it spells become real ones."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def prompt(self, example: Example, id: str) -> tuple[Segment, tuple[Picture, ...]]:
        """The prompt segment, which ends where the policy starts, and its pictures in order."""
        if example.images and not self.sees:
            raise ConfigError(
                f"task: example {example.id} shows {len(example.images)} pictures, and the model "
                f"at {self._processor.path} takes none: choose a task of text alone, or name a "
                "model with eyes as model.path"
            )
        pictures = tuple(as_picture(image) for image in example.images)
        content = self._content(example.question, len(pictures), id)
        messages: list[Any] = [{"role": "user", "content": content}]
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        tokens = self._wire.prompt(messages, self._specs)
        return self._segment(id, Origin.PROMPT, tokens, pictures), pictures

    def visible(self, shown: Shown) -> Shown:
        """What the model gets to see of an observation: text alone, with a note in place of the
        pictures, if it has no eyes."""
        if self.sees or not shown.views:
            return shown
        note = f"({len(shown.views)} pictures, which you cannot see)"
        return replace(shown, text=f"{shown.text}\n{note}".strip(), views=())

    def preprocess(self, pictures: Mapping[str, Image.Image]) -> None:
        """Make the pixels of pictures by digest before an engine in this process needs them."""
        for digest, image in pictures.items():
            self._processor.pixels(digest, image)

    def observation(
        self, turn: Sequence[int], results: Sequence[Observation], id: str
    ) -> tuple[Segment, tuple[Picture, ...]]:
        """The segment after the policy's `turn`, the calls' results in one user turn, and pictures.

        The segment closes the turn if the policy did not, and opens the policy's next one.
        """
        pictures: list[Picture] = []
        messages: list[Any] = []
        for result in results:
            content, found = self._shown(result)
            messages.append({"role": "tool", "content": content})
            pictures += found
        tokens = self._wire.results(turn, messages)
        if tokens is None:
            raise RenderingError(f"segment {id}: renderers did not extend the sampled tokens")
        return self._segment(id, Origin.OBSERVATION, tokens, pictures), tuple(pictures)

    def reply(self, shown: Observation, id: str) -> tuple[Segment, tuple[Picture, ...]]:
        """The segment of an environment's reply to a turn that the policy closed, and its pictures.

        The segment holds a user turn and opens the policy's next one.
        """
        content, pictures = self._shown(shown)
        tokens = self._wire.reply({"role": "user", "content": content})
        return self._segment(id, Origin.ENVIRONMENT, tokens, pictures), tuple(pictures)

    def critique(self, turn: Sequence[int], text: str, id: str) -> list[Segment]:
        """A user turn that says `text` after the policy's `turn`, as three segments.

        They are the turn's opening, its words and the opening of the policy's next turn. The words
        are a policy segment that nobody sampled, so that they can be trained on.
        """
        # renderers' bridge is not used: it refuses a turn that ended inside its thinking.
        closed = bool(turn) and turn[-1] == self._turn_end
        opening = self.encode(("" if closed else "<|im_end|>") + "\n<|im_start|>user\n")
        # The tokenizer would join a line break at the beginning with the one after "user".
        words = self._text.plain(text).strip()
        after = [*self.encode("<|im_end|>\n"), *self._generation_prompt]
        return [
            Segment(f"{id}/o", Origin.OBSERVATION, tuple(opening)),
            Segment(f"{id}/critique", Origin.POLICY, tuple(self.encode(words))),
            Segment(f"{id}/a", Origin.OBSERVATION, tuple(after)),
        ]

    def demonstrated(self, text: str) -> list[int] | None:
        """A teacher's turn as the policy would sample it after the generation prompt.

        Line breaks at its beginning are dropped, as the family's template drops them. None if the
        tokenizer joins its first characters with the end of the prompt into one token, which a
        policy that starts after the prompt cannot sample.
        """
        text = text.lstrip("\n")
        before = self.decode(self._generation_prompt)
        tokens = [*self.encode(text), self._turn_end]
        whole = [*self.encode(f"{before}{text}"), self._turn_end]
        return tokens if whole == [*self._generation_prompt, *tokens] else None

    def ends_text(self, turn: Sequence[int]) -> bool:
        """Whether the policy ended the whole text: by a stop token other than `<|im_end|>`."""
        return bool(turn) and turn[-1] in self.stop and turn[-1] != self._turn_end

    def parse(self, turn: Sequence[int], call_at: int | None = None) -> ParsedTurn:
        """What a turn says; spans count from the turn's first token."""
        return self._wire.parse(turn, call_at)

    def _segment(
        self, id: str, origin: Origin, tokens: Sequence[int], pictures: Sequence[Picture]
    ) -> Segment:
        """Expand each picture's one placeholder to the number of tokens it takes."""
        if tokens.count(self._image_token) != len(pictures):
            raise RenderingError(
                f"segment {id}: {tokens.count(self._image_token)} placeholders for "
                f"{len(pictures)} pictures"
            )
        rest = iter(pictures)
        out: list[int] = []
        spans: list[ImageSpan] = []
        for token in tokens:
            if token != self._image_token:
                out.append(token)
                continue
            picture = next(rest)
            count = self._processor.picture_tokens(picture.image)
            spans.append(ImageSpan(picture.digest, len(out), count))
            out += [token] * count
        return Segment(id, origin, tuple(out), images=tuple(spans))

    def _part(self, text: str) -> dict[str, str]:
        return {"type": "text", "text": self._text.plain(text)}

    def _shown(self, shown: Observation) -> tuple[list[dict[str, str]], list[Picture]]:
        """An observation as a message's content, text before pictures, and its pictures."""
        pictures = [as_picture(view.image) for view in shown.views]
        text = [self._part(shown.text)] if shown.text else []
        return [*text, *({"type": "image"} for _ in pictures)], pictures

    def _content(self, question: str, pictures: int, id: str) -> list[dict[str, str]]:
        """A question's text and pictures, in the order in which they are shown."""
        between = question.split(IMAGE)
        if len(between) == 1:
            return [*({"type": "image"} for _ in range(pictures)), self._part(question)]
        if len(between) - 1 != pictures:
            raise RenderingError(
                f"segment {id}: {len(between) - 1} {IMAGE} in the question for {pictures} pictures"
            )
        parts = [self._part(between[0])]
        for text in between[1:]:
            parts += [{"type": "image"}, self._part(text)]
        return [part for part in parts if part["type"] == "image" or part["text"]]
