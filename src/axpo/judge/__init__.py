"""A model that grades: any OpenAI-compatible endpoint, asked once per question and recorded.

`judge` is the grader, `messages` makes what is sent from the files in `prompts/`, `replies` reads
what comes back, and `client` speaks HTTP. Replies are kept by `axpo.recorded`.
"""

from axpo.judge.judge import Judge, make_judge

__all__ = ["Judge", "make_judge"]
