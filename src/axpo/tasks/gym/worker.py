"""The process in which reasoning-gym makes questions and scores answers.

Its scorers may take any time, and print. Some of its sets draw from Python's sets, whose order
differs between processes unless their hashes are fixed, as they are here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from axpo.tasks.grading.serving import serve
from axpo.tasks.gym.programs import program

CHUNK = 1000
"""Questions per instance of a set. Its items draw from seed + index, so that chunks whose seeds
differ by this share none."""


def load() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What answers {"name", "settings", "number", "program"} with {"question", "answer"}, and with
    the {"program"} if it is asked for; where an "answer" to the question "asked" is given, with its
    {"score"}; and with {"error"} what fails."""
    import reasoning_gym

    @lru_cache(maxsize=64)
    def instance(name: str, settings: str, seed: int) -> Any:
        return reasoning_gym.create_dataset(name, **json.loads(settings), seed=seed, size=CHUNK)

    def answer(place: Mapping[str, Any]) -> dict[str, Any]:
        name, number = place["name"], place["number"]
        index = number % CHUNK
        try:
            source = instance(name, json.dumps(place["settings"], sort_keys=True), number - index)
            entry = source[index]
            if "answer" not in place:
                found = {"question": entry["question"], "answer": entry["answer"]}
                return found | {"program": program(name, entry)} if place["program"] else found
            if entry["question"] not in place["asked"]:
                return {"error": "its number makes another question by now"}
            return {"score": float(source.score_answer(place["answer"], entry))}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    return answer


if __name__ == "__main__":
    serve(load)
