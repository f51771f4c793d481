"""Settings of a rollout: its limits, and the tools that it may call."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from axpo.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from axpo.config.secrets import masked_arguments, masked_text

_NEEDED = ("<|im_end|>", "<|endoftext|>", "</think>", "<tool_call>", "</tool_call>")


class RolloutSettings(Section):
    tools: tuple[str, ...] = ("image_zoom_in_tool",)
    """Tools that the agent may call: built-in names, or "module:name" of one's own."""
    max_turns: PositiveInt = 3
    """Policy turns per trajectory (paper: at most 3)."""
    max_turn_tokens: PositiveInt = 64
    """Sampled tokens per turn."""
    max_tokens: PositiveInt = 256
    """Tokens of a trajectory after the prompt, observations included."""
    max_seconds: PositiveFloat = 120.0
    """Wall time of a trajectory, without what it waits for a place in the engine or a tool; what is
    past it ends as max_seconds."""
    temperature: NonNegativeFloat = 1.0
    """RL samples at 1: truncated or sharpened sampling biases the ratio."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 turns it off."""
    top_k: NonNegativeInt = 0
    """0 turns it off."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted once from the logits of tokens that the turn has sampled already, before the
    temperature; 0 turns it off."""
    banned: tuple[str, ...] = ("<|im_start|>", "<tool_response>", "</tool_response>")
    """Control tokens that the policy cannot sample, beside the placeholders of pictures: with these
    it could write other turns and tool answers into its own. The trainer's probabilities leave
    them out as well (choice)."""

    @model_validator(mode="after")
    def _able(self) -> RolloutSettings:
        if needed := [name for name in self.banned if name in _NEEDED]:
            raise ValueError(
                f"banned: a turn cannot do without {needed[0]}; take it out of the list"
            )
        return self


class LimitSettings(Section):
    """Limits of one tool. A tool may bring its own defaults; a recipe overrides them one by one."""

    timeout: PositiveFloat | None = None
    """Seconds of one call, its retries included; the tool's own by default."""
    concurrency: PositiveInt = 64
    """Calls that run at once; further ones wait, which is nobody's time."""
    calls_per_second: PositiveFloat | None = None
    """Attempts a second, after a burst of one second's; no limit by default."""
    retries: NonNegativeInt = 0
    """Further attempts after a fault that is ours; for tools whose calls leave nothing behind."""
    max_characters: PositiveInt = 16_384
    """Characters of a result's text; the middle is left out."""
    max_tokens: PositiveInt = 4_096
    """Tokens of a result's text; the middle is left out."""
    max_pixels: PositiveInt = 4_194_304
    """Pixels of one picture of a result (4,096 image tokens); a larger one is shrunk."""
    max_stuck: PositiveInt = 8
    """Calls given up that still run, from which on the tool refuses calls as a fault."""


class McpSettings(Section):
    """One MCP server whose tools the agent gets beside `rollout.tools`."""

    command: tuple[str, ...] = ()
    """Program and arguments of a server that is started and spoken to over its stdin and stdout."""
    url: str | None = None
    """Address of a running server (streamable HTTP)."""
    env: tuple[str, ...] = ()
    """Names of environment variables that a started server gets beside PATH, HOME and the like."""
    prefix: str = ""
    """Put before the names of the server's tools."""
    tools: tuple[str, ...] = ()
    """The server's tools that the agent gets, by the server's names; all by default."""
    timeout: PositiveFloat = 30.0
    """Seconds of one call."""
    start_seconds: PositiveFloat = 30.0
    """Seconds that the server may take to start and greet."""

    @model_validator(mode="after")
    def _one_address(self) -> McpSettings:
        if bool(self.command) == bool(self.url):
            raise ValueError("command, url: expected one of them")
        if self.url and self.env:
            raise ValueError("env: no effect with url; remove it")
        return self

    @property
    def address(self) -> str:
        """The URL or the command line, for messages: secrets in it are masked."""
        return masked_text(self.url) if self.url else " ".join(masked_arguments(self.command))


class PythonSettings(Section):
    """The `python` tool's sandbox."""

    level: Literal["bubblewrap", "landlock", "unsafe"] | None = None
    """What contains the code; the strongest that this machine has by default, "unsafe" nothing."""
    packages: str = "own"
    """"own" installs what the code may import once, apart; "current" shows it this environment's;
    or a folder of your own."""


class SearchSettings(Section):
    """web_search, web_extractor and image_search."""

    backend: Literal["corpus", "tavily"] = "corpus"
    """"corpus" searches the index at `corpus`; "tavily" the web, with the key in TAVILY_API_KEY."""
    corpus: str | None = None
    """Index file of `axpo index FOLDER` or `axpo index FILE.jsonl`; "lab" is the lab's own."""
    gallery: str | None = None
    """Index file of `axpo index FOLDER --pictures`, which image_search looks in; "lab" is the
    lab's own."""
    cache: str | None = None
    """File of recorded answers; none by default."""
    mode: Literal["record", "replay"] = "record"
    """"record" asks for what is not in `cache`; "replay" never does: a run without the network."""
    budget: NonNegativeInt | None = None
    """Paid calls over the whole life of `cache`; no limit by default."""
    blocked: tuple[str, ...] = ()
    """Pages that are neither shown nor opened: hosts, with or without the beginning of a path, such
    as "huggingface.co/datasets/CaraJ/MMSearch"; those of a benchmark, when it is measured."""
    results: PositiveInt = 5
    """Results a search (choice)."""
    snippet: PositiveInt = 300
    """Characters of a result's snippet or caption (choice)."""
    page: PositiveInt = 4000
    """Characters of an opened page (choice)."""

    @model_validator(mode="after")
    def _effective(self) -> SearchSettings:
        if self.cache is None and (idle := {"mode", "budget"} & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect without cache; set it")
        if self.backend == "tavily" and self.corpus is not None:
            raise ValueError("corpus: no effect with backend = 'tavily'; remove it")
        return self


class ToolsSettings(Section):
    """Limits of the tools, and servers that bring further ones."""

    limits: dict[str, LimitSettings] = Field(default_factory=dict)
    """A tool's name -> its limits."""
    mcp: tuple[McpSettings, ...] = ()
    """MCP servers."""
    python: PythonSettings = PythonSettings()
    search: SearchSettings = SearchSettings()
    own: Section = Section()
    """Settings of your own tools: a section per class with `Settings`, by the tool's name."""
