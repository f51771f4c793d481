"""Settings of the judge: a model that the graders "judge" and "rubric" ask."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from axpo.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from axpo.config.endpoint import check_endpoint

_SHARE = "--gpu-memory-utilization"


class JudgeServer(Section):
    """A vLLM server of `judge.model`, a folder or a Hub id, that starts and ends with the run."""

    python: str
    """The python of vLLM's own environment (docs/vllm.md)."""
    max_length: PositiveInt = 8192
    """How many tokens of a question to the judge, its reply included, the server takes."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of its card that the server takes, weights included (choice); on a CPU it has no
    effect. What is sampled and trained with on the same card must fit beside it."""
    cards: str | None = None
    """The cards that it sees, as CUDA_VISIBLE_DEVICES has them ("1", "2,3"); those of this process
    by default. Cards that are named here are taken to be others than the trainer's."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the server, such as "--tensor-parallel-size=2"."""
    start_seconds: PositiveFloat = 600.0
    """How many seconds the server may take to start."""

    @model_validator(mode="after")
    def _counted(self) -> JudgeServer:
        given = [argument.partition("=")[0].replace("_", "-") for argument in self.arguments]
        if _SHARE in given:
            raise ValueError(f"arguments: {_SHARE} is the setting `share` here; set that instead")
        return self


class JudgeSettings(Section):
    """A model behind an OpenAI-compatible API that says whether answers are right."""

    url: str | None = None
    """Base address of the API; requests go to URL/chat/completions."""
    vllm: JudgeServer | None = None
    """A vLLM server that is started instead."""
    model: str
    """The model's name at `url`; for `vllm` its folder or Hub id."""
    record: str
    """File of recorded answers: what is in it is never asked, or paid for, again."""
    key: str | None = None
    """Name of the environment variable that holds the API's key; none by default."""
    prompt: str | None = None
    """A shipped prompt or a file of your own for the grader "judge"; by default "answer", or
    "picture" with picture = true."""
    rubric: str = "rubric"
    """A shipped prompt or a file of your own for the grader "rubric"."""
    picture: bool = False
    """Send the question's pictures too."""
    budget: NonNegativeInt | None = None
    """Paid calls over the whole life of `record`; no limit by default."""
    concurrency: PositiveInt = 16
    """Requests that are under way at once; further ones wait, which is nobody's time (choice)."""
    retries: NonNegativeInt = 4
    """Further requests after one that failed, and further questions after a reply without a
    verdict (choice)."""
    timeout: PositiveFloat = 60.0
    """Seconds of one request (choice)."""
    deadline: PositiveFloat = 300.0
    """Seconds of one question with its retries and the waits between them (choice)."""
    max_tokens: PositiveInt = 1024
    """Tokens of a reply; one that is cut off there gives no verdict (choice)."""
    temperature: NonNegativeFloat = 0.0
    """Temperature of the judge."""
    more: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further fields of a request, in place of axpo's own where they have the same name; a field
    set to "" is not sent."""

    @model_validator(mode="after")
    def _usable(self) -> JudgeSettings:
        if (self.url is None) == (self.vllm is None):
            raise ValueError(
                "url, vllm: expected one of them, url for a server that runs or the section "
                "judge.vllm to start one"
            )
        urls = () if self.url is None else (self.url,)
        check_endpoint("url", urls, self.key, self.timeout, self.deadline)
        return self
