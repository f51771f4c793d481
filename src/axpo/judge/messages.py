"""What the judge is sent: a prompt from a file, filled in, with the pictures where they are asked
for.

A prompt is a text with a line `---`: what stands above it is the system message, what stands below
the user's. Without such a line all of it is the user's. It has the fields `{question}`, `{truths}`
(one on each line), `{answer}` (the final answer), `{turn}` (the whole last turn) and `{rubric}`.

What is filled in cannot leave its place. Each `<` gets a space behind it, and so do the brackets of
names like `[INST]`, so that a text can spell neither the prompt's own tags nor the control tokens
of the judge's chat template, which many servers read in any message.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from axpo.errors import ConfigError, MissingError
from axpo.pictures import as_rgb, shrunk
from axpo.tasks.base import IMAGE, Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.verdict import truths_of
from axpo.tools.limits import cut_characters

FOLDER = Path(__file__).parent / "prompts"
MAX_ANSWER, MAX_TURN = 2_000, 16_000
"""Characters of a final answer and of a turn that the judge is shown; the middle is left out. A
policy must not be able to fill the judge's context, which would leave its rollout unscored
(choice)."""
MAX_PIXELS = 4_194_304
"""Pixels of a picture that is sent; a larger one is shrunk (choice)."""
QUALITY = 90
REMINDER = (
    "\n\nReminder {number}: the reply before this one did not end in the required form. Reply "
    "again, and end in exactly that form."
)
_FIELD = re.compile(r"\{(question|truths|answer|turn|rubric)\}")
_TAG = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]+\])")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's parts, with fields to fill in; `system` may be empty."""

    system: str
    user: str

    def filled(self, values: Mapping[str, str]) -> tuple[str, str]:
        """System and user message; what is filled in is not looked at again."""
        return (
            _FIELD.sub(lambda field: values[field[1]], self.system),
            _FIELD.sub(lambda field: values[field[1]], self.user),
        )


def read_prompt(given: str, setting: str, needed: Sequence[str]) -> Prompt:
    """The shipped prompt of this name, or the file at this path.

    Raises `MissingError` where there is none, and `ConfigError` for one that lacks all the fields
    in one of `needed`, such as "answer|turn".
    """
    shipped = sorted(file.stem for file in FOLDER.glob("*.txt"))
    path = FOLDER / f"{given}.txt" if given in shipped else Path(given)
    if not path.is_file():
        raise MissingError(f"{setting}: no file {given}; shipped are {', '.join(shipped)}")
    text = path.read_text(encoding="utf-8")
    for fields in needed:
        if not any(f"{{{field}}}" in text for field in fields.split("|")):
            named = " or ".join(f"{{{field}}}" for field in fields.split("|"))
            raise ConfigError(f"{setting}: {path} has no {named}, so the judge would not see it")
    head, line, rest = text.partition("\n---\n")
    return Prompt(head.strip(), rest.strip()) if line else Prompt("", text.strip())


def values_of(example: Example, turn: str) -> dict[str, str]:
    """What a prompt's fields are filled with for the policy's last `turn`."""
    points = (f"p{n} ({p.value:g}): {quoted(p.text)}" for n, p in enumerate(example.rubric, 1))
    return {
        "question": quoted(example.question.replace(IMAGE, "[picture]").strip()),
        "truths": "\n".join(f"- {quoted(truth)}" for truth in truths_of(example)),
        "answer": quoted(cut_characters(final_answer(turn), MAX_ANSWER)),
        "turn": quoted(cut_characters(turn.strip(), MAX_TURN)),
        "rubric": "\n".join(points),
    }


def quoted(text: str) -> str:
    """`text` without tags and control tokens, and in a form that can be sent."""
    return _TAG.sub(lambda begun: f"{begun[0]} ", text.encode("utf-8", "replace").decode())


def messages(system: str, user: str, pictures: Sequence[str]) -> list[Message]:
    """The request's messages; `pictures` are data URLs and stand before the text."""
    content: Any = user
    if pictures:
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        content = [*shown, {"type": "text", "text": user}]
    spoken = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


def data_url(picture: Image.Image) -> str:
    """A picture within `MAX_PIXELS` as JPEG; takes a moment."""
    file = io.BytesIO()
    shrunk(as_rgb(picture), MAX_PIXELS).save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
