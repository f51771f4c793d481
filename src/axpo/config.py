"""Typed settings: a sparse TOML recipe plus dotted overrides becomes one checked `Config`.

Nothing here imports torch, so that a wrong key or value is refused in milliseconds, before any
model is loaded. Numbers quote their source where the paper names them (METHOD = arXiv
2605.28774); the others are our choices and are listed in `docs/paper_map.md`.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Family = Literal["find", "calculate", "look_up", "recognise"]


class UserError(ValueError):
    """Something that whoever runs a command can put right; the command prints the message alone."""


class ConfigError(UserError):
    """A setting that is unknown, ineffective or out of range; the message names the key."""


class Section(BaseModel):
    """Base of all settings: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


TextLayer = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraSettings(Section):
    """Low-rank adapters: W + (alpha / rank) B A is trained in A and B alone."""

    rank: PositiveInt = 32
    """Rows of A, columns of B (choice)."""
    alpha: PositiveInt = 32
    """The adapters' scale, before it is divided by the rank (choice)."""
    targets: Annotated[tuple[TextLayer, ...], Field(min_length=1)] = typing.get_args(TextLayer)
    """Linear layers of the text model that get adapters; all by default."""
    vision: bool = False
    """Also adapt the linear layers of the vision tower and its mergers."""


class ModelSettings(Section):
    path: str = "lab-base"
    """Run folder (its newest checkpoint), checkpoint, Hub id, or "lab-base", the shipped model."""
    device: str = "auto"
    """torch device; "auto" takes a GPU when there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """float32, or bfloat16 (for GPUs), trained on float32 masters that only a resume reads back."""
    threads: NonNegativeInt = 1
    """CPU threads of one process; 0 leaves torch's default."""
    gradient_checkpointing: bool = False
    """Training keeps each layer's input alone and computes the rest again: less memory, about a
    third more operations."""
    lora: LoraSettings | None = None
    """Adapters that are trained instead of the weights; full fine-tuning by default."""


OneOrMore = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""A name, or a list of names."""


class ColumnSettings(Section):
    """Which column of the data holds a field; the values of several are put together.

    `outer.inner` looks inside a column, `list.0` and `list.-1` take one element of a list.
    """

    id: str = "id"
    """Unique name of a question; the row's place where the data has none."""
    question: str = "question"
    """Text; `<image>` or `<image1>` places a picture, which else stands before it."""
    images: OneOrMore = ("images",)
    """Picture or list of pictures: path, bytes, base64, or {bytes, path}; may be missing."""
    answer: OneOrMore = ("answer",)
    """The truth, or a list of truths each of which is right."""
    options: OneOrMore = ("options",)
    """Options of a multiple choice, listed below the question; may be missing."""
    grading: str = "grading"
    """The row's grader; may be missing (task.grading)."""
    demonstration: str = "demonstration"
    """A teacher's turns for SFT; may be missing."""
    meta: OneOrMore = ("meta",)
    """What goes along into the trajectory trees; may be missing."""


class TaskSettings(Section):
    name: Literal["lab", "data"] = "lab"
    """"lab" generates questions of `families`; "data" reads a data set at `path` or `hub`."""
    families: Annotated[tuple[Family, ...], Field(min_length=1)] = ("find",)
    """The lab's families of questions, in turn: find (for image_zoom_in_tool), calculate (python),
    look_up (web_search, over corpus "lab") and, for evaluation only, recognise (image_search, over
    gallery "lab")."""
    path: OneOrMore = ()
    """Files of a data set, .jsonl, .json or .parquet: one or several, `*` allowed; `{split}` in a
    name is replaced."""
    hub: str | None = None
    """A data set's Hub id, or a folder laid out like one (extra "data")."""
    subset: str | None = None
    """Configuration of the data set at `hub`, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the data set at `hub`; a commit makes a run repeatable."""
    splits: dict[str, str] = {}
    """A split's name here ("train", "sft", "test") -> its name in the data, at `hub` also a slice
    such as "train[:500]"; the same name by default."""
    streaming: tuple[str, ...] = ()
    """Splits that are read as they arrive, not copied to this machine first (Parquet and Hub)."""
    window: PositiveInt = 1000
    """Rows of a streamed split that are held and shuffled at once."""
    columns: ColumnSettings = ColumnSettings()
    """Where a row of the data holds what."""
    grading: str | None = None
    """Grader of rows that name none; by default "choice" for rows with options, else "exact"."""
    image_folder: str | None = None
    """Folder that the data's image paths start from; its file's own by default."""
    system: str | None = None
    """System message before the tools' signatures; none by default."""

    @model_validator(mode="after")
    def _effective(self) -> TaskSettings:
        if self.name == "lab":
            idle = self.model_fields_set - {"name", "families", "system"}
            if idle:
                raise ValueError(
                    f"{', '.join(sorted(idle))}: no effect with name = 'lab'; set name = 'data'"
                )
            return self
        if "families" in self.model_fields_set:
            raise ValueError("families: no effect with name = 'data'; remove it")
        if bool(self.path) == bool(self.hub):
            raise ValueError("path, hub: the data task needs one of them, files or a Hub id")
        if self.path and (idle := {"subset", "revision"} & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect without hub; remove it")
        if self.path and self.splits and not any("{split}" in name for name in self.path):
            raise ValueError("splits: no effect without {split} in path; add it or remove splits")
        if not self.streaming and "window" in self.model_fields_set:
            raise ValueError("window: no effect without streaming; remove it")
        return self


class RolloutSettings(Section):
    tools: tuple[str, ...] = ("image_zoom_in_tool",)
    """Tools that the agent may call: built-in names, or "module:name" of one's own."""
    max_turns: PositiveInt = 3
    """Policy turns a trajectory (METHOD: at most 3)."""
    max_turn_tokens: PositiveInt = 64
    """Sampled tokens a turn."""
    max_tokens: PositiveInt = 256
    """Tokens of a trajectory after the prompt, observations included."""
    max_seconds: PositiveFloat = 120.0
    """Wall time of a trajectory; what is past it ends as max_seconds."""
    temperature: NonNegativeFloat = 1.0
    """RL samples at 1: truncated or sharpened sampling biases the ratio."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 turns it off."""
    top_k: NonNegativeInt = 0
    """0 turns it off."""


class LimitSettings(Section):
    """Limits of one tool. A tool may bring its own defaults; a recipe overrides them one by one."""

    timeout: PositiveFloat | None = None
    """Seconds of one call, its retries included; the tool's own by default."""
    queue_seconds: PositiveFloat = 60.0
    """Seconds that a call waits for a place before it fails; they are not the tool's time."""
    concurrency: PositiveInt = 64
    """Calls that run at once."""
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

    limits: dict[str, LimitSettings] = {}
    """A tool's name -> its limits."""
    mcp: tuple[McpSettings, ...] = ()
    """MCP servers."""
    python: PythonSettings = PythonSettings()
    search: SearchSettings = SearchSettings()


class VllmSettings(Section):
    """vLLM servers: started with `python`, or running at `urls`."""

    python: str | None = None
    """The python of vLLM's own environment, which servers are started with (docs/vllm.md)."""
    servers: PositiveInt = 1
    """Servers that are started."""
    port: NonNegativeInt = 0
    """Port of the first server that is started, the others' follow; 0 takes free ones."""
    max_length: PositiveInt = 8192
    """Tokens of a path, its prompt included, that a started server takes."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the servers that are started, such as "--tensor-parallel-size=2"."""
    start_seconds: PositiveFloat = 600.0
    """Seconds that a server may take to start, or to come back after it was lost."""
    urls: tuple[str, ...] = ()
    """Addresses of running servers, as `axpo serve` prints them."""
    folder: str | None = None
    """Folder for weights that the servers at `urls` can read; a temporary one by default."""
    transfer: Literal["file", "nccl"] = "file"
    """How weights get to the servers: by a file that both see, or from GPU to GPU."""
    request_seconds: PositiveFloat = 900.0
    """Seconds that a server may take over one request before it counts as hung."""
    health_seconds: PositiveFloat = 10.0
    """Seconds that a busy server may take to say that it is well."""
    max_logprob_difference: PositiveFloat = 0.02
    """Training is refused where the mean difference (nats) of a server's logprobs from the
    trainer's is larger (choice; docs/vllm.md)."""

    @model_validator(mode="after")
    def _one_source(self) -> VllmSettings:
        if bool(self.python) == bool(self.urls):
            raise ValueError(
                "python, urls: expected one of them, python to start servers "
                "(`make vllm-env` builds its environment) or urls of running ones"
            )
        started = {"servers", "port", "max_length", "arguments"} & self.model_fields_set
        if self.urls and started:
            raise ValueError(f"{', '.join(sorted(started))}: no effect with urls; remove it")
        if wrong := [url for url in self.urls if not url.startswith(("http://", "https://"))]:
            raise ValueError(f"urls: got {wrong[0]!r}, expected one such as http://127.0.0.1:8000")
        if self.python and self.folder is not None:
            raise ValueError("folder: no effect with python; remove it")
        if self.transfer == "nccl" and self.folder is not None:
            raise ValueError("folder: no effect with transfer = 'nccl'; remove it")
        return self


class EngineSettings(Section):
    name: Literal["transformers", "vllm"] = "transformers"
    """Where tokens are sampled: "transformers" in this process, "vllm" in servers beside it."""
    slots: PositiveInt = 256
    """Sequences kept or running at once; with "transformers" these are KV slots."""
    max_prefill_tokens: PositiveInt = 4096
    """Padded tokens of one prefill call ("transformers")."""
    vllm: VllmSettings | None = None
    """Servers of the "vllm" engine."""

    @model_validator(mode="after")
    def _effective(self) -> EngineSettings:
        if self.name == "vllm" and self.vllm is None:
            raise ValueError("vllm: needed by name = 'vllm'; add [engine.vllm] with python or urls")
        if self.name == "vllm" and "max_prefill_tokens" in self.model_fields_set:
            raise ValueError("max_prefill_tokens: no effect with name = 'vllm'; remove it")
        if self.name != "vllm" and self.vllm is not None:
            raise ValueError(f"vllm: no effect with name = {self.name!r}; set name = 'vllm'")
        return self


class AlgorithmSettings(Section):
    """GRPO, AXPO and what they are compared with; every ablation is one of these settings."""

    name: Literal["grpo", "axpo", "arpo", "rltf"] = "axpo"
    """"grpo" is the baseline without resampling; "arpo" (arXiv 2507.19849) branches after
    observations by entropy; "rltf" (arXiv 2602.02482) learns from critiques and second attempts."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """N, rollouts a question (METHOD: 8; ARPO's paper: 16, its branches among them)."""
    continuations: Annotated[int, Field(ge=2)] = 4
    """K, continuations a selected prefix (METHOD: 4)."""
    extra_budget: Fraction = 0.25
    """r: at most floor(r B N) extra continuations a batch (METHOD: 0.25)."""
    loss: Literal["clip", "cispo"] = "clip"
    """"clip" is the asymmetric clip of METHOD 8; "cispo" the capped weight of arXiv 2506.13585."""
    clip_low: PositiveFloat = 0.2
    """rho is clipped from below at 1 - clip_low (METHOD: 0.2)."""
    clip_high: PositiveFloat = 0.4
    """rho is clipped from above at 1 + clip_high (METHOD: 0.4)."""
    cispo_max_ratio: PositiveFloat = 5.0
    """CISPO: rho itself is capped at this value, with no floor (METHOD: about 5). An absolute
    bound, where some libraries take the offset eps of 1 + eps."""
    kl: NonNegativeFloat = 1e-3
    """beta of the k3 KL estimate to the SFT policy (METHOD: 1e-3)."""
    aggregation: Literal["question_mean", "token_mean"] = "question_mean"
    """question_mean: Eq. 5, each slot 1/N, then mean over questions (choice)."""
    tool_bonus: float = 0.0
    """GRPO: added to a tool-using rollout's reward, for its advantage only; below 0 it is the tool
    penalty (METHOD: a constant)."""
    initial_share: Fraction = 0.5
    """ARPO: share of the N that is sampled before any branch (arXiv 2507.19849: 8 of 16)."""
    entropy_rule: Literal["threshold", "draw"] = "threshold"
    """ARPO: "threshold" branches where P > tau (arXiv 2507.19849), "draw" with probability P, as
    its open code does."""
    entropy_base: float = 0.5
    """ARPO: alpha of P = alpha + beta dH (arXiv 2507.19849: 0.5)."""
    entropy_gain: float = 0.2
    """ARPO: beta of P = alpha + beta dH (arXiv 2507.19849: 0.2)."""
    entropy_threshold: float = 0.5
    """ARPO: tau; a trajectory branches where P > tau (arXiv 2507.19849: 0.5)."""
    distill_weight: NonNegativeFloat = 0.1
    """RLTF: weight of -A log pi(second attempt | question) beside GRPO (METHOD: 0.1)."""
    distill_floor: float = -5.0
    """RLTF: distilled tokens with a lower logprob are dropped (METHOD: -5)."""
    feedback_weight: NonNegativeFloat = 0.1
    """RLTF: weight of the critiques' cross-entropy beside GRPO (METHOD: 0.1)."""
    prefix: Literal["tool_call", "scratch"] = "tool_call"
    """"scratch" resamples whole rollouts: the ablation without prefix fix."""
    resample: Literal["tool", "no_tool"] = "tool"
    """"no_tool" triggers on and resamples no-tool rollouts instead (ablation)."""
    ranking: Literal["confidence", "random"] = "confidence"
    """"random" ranks candidate prefixes by a seeded draw (ablation)."""
    branch_at: Literal["first", "least_confident"] = "first"
    """The call that a prefix ends in: the first (METHOD 3), or the least confident of those that an
    observation answered (our extension, beyond the paper)."""
    prefix_credit: bool = True
    """False: a selected source keeps its plain GRPO advantage (ablation)."""
    separate_group: bool = True
    """False: continuations join the rollouts' advantage group (ablation)."""

    @model_validator(mode="after")
    def _ineffective(self) -> AlgorithmSettings:
        for key, owned in _OWN_SETTINGS.items():
            chosen = getattr(self, key)
            others = {s for value, own in owned.items() if value != chosen for s in own}
            if idle := sorted(others & self.model_fields_set):
                raise ValueError(f"{', '.join(idle)}: no effect with {key} = {chosen!r}; remove it")
        if "branch_at" in self.model_fields_set:
            for key, needed in (("prefix", "tool_call"), ("resample", "tool")):
                if (value := getattr(self, key)) != needed:
                    raise ValueError(f"branch_at: no effect with {key} = {value!r}; remove it")
        if self.name == "rltf" and self.aggregation != "question_mean":
            raise ValueError(
                f"aggregation: {self.aggregation!r} ignores the weights of RLTF's terms; "
                "set 'question_mean'"
            )
        if self.loss == "cispo" and self.aggregation != "token_mean":
            raise ValueError(
                f"aggregation: {self.aggregation!r}, but CISPO is token-normalised; "
                "set 'token_mean'"
            )
        return self


_OWN_SETTINGS: Mapping[str, Mapping[str, set[str]]] = {
    "name": {
        "grpo": {"tool_bonus"},
        "arpo": {
            "initial_share", "entropy_rule", "entropy_base", "entropy_gain", "entropy_threshold",
        },
        "rltf": {"distill_weight", "distill_floor", "feedback_weight"},
        "axpo": {
            "continuations", "extra_budget", "prefix", "resample", "ranking", "branch_at",
            "prefix_credit", "separate_group",
        },
    },
    "entropy_rule": {"threshold": {"entropy_threshold"}, "draw": set()},
    "loss": {"clip": {"clip_low", "clip_high"}, "cispo": {"cispo_max_ratio"}},
}  # fmt: skip
"""A choice's key -> value -> the settings that have an effect with that value only."""


class OptimizerSettings(Section):
    learning_rate: NonNegativeFloat = 1e-4
    """AdamW's peak rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of matrices (norms and biases have none)."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the rate grows linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up; to 0 at the last update."""
    freeze_vision: bool = False
    """Leave the vision tower as it is (its mergers too). verl and TRL train it by default."""
    max_tokens_per_micro_batch: PositiveInt = 8192
    """Packed tokens of one forward/backward; a larger tree is trained in pieces of so many."""


class RLSettings(Section):
    steps: PositiveInt = 60
    """Training steps (batches of questions)."""
    questions: PositiveInt = 16
    """B, questions a step."""
    updates: PositiveInt = 2
    """Optimizer updates a step; from 2 on the clip is alive."""
    old_logprobs: Literal["engine", "recompute"] = "engine"
    """pi_old: the engine's own numbers, or the trainer's before the first update."""
    importance_cap: PositiveFloat | None = None
    """Truncated importance sampling: a token weighs min(pi_old / pi_engine, cap); 2 is TRL's
    default. Off by default: an engine that differs is refused at the start. Needs "recompute"."""
    importance_level: Literal["token", "sequence"] = "token"
    """"sequence" takes the ratio of a credited run as a whole."""
    max_staleness: NonNegativeInt = 0
    """Sample ahead while a step is trained: so many versions the weights that sampled may lie
    behind those that are trained. 0 is strictly on-policy; needs servers (engine.vllm)."""
    in_flight: Literal["keep", "restart", "finish"] = "keep"
    """Requests in flight when new weights come: "keep" their tokens and go on from them, "restart"
    them, or let them "finish" with the old weights first."""
    optimizer: OptimizerSettings = OptimizerSettings()

    @model_validator(mode="after")
    def _effective(self) -> RLSettings:
        if self.importance_cap is not None and self.old_logprobs == "engine":
            raise ValueError(
                "importance_cap: no effect with old_logprobs = 'engine'; set it to 'recompute'"
            )
        if self.importance_cap is None and "importance_level" in self.model_fields_set:
            raise ValueError("importance_level: no effect without importance_cap; set it")
        if self.max_staleness == 0 and "in_flight" in self.model_fields_set:
            raise ValueError("in_flight: no effect with max_staleness = 0; remove it")
        recomputed = self.old_logprobs == "recompute" and self.importance_cap is None
        if self.max_staleness and recomputed:
            raise ValueError(
                "old_logprobs: 'recompute' takes what older weights sampled for the policy's own; "
                "set rl.importance_cap with it, or use 'engine', or max_staleness = 0"
            )
        return self


class SFTSettings(Section):
    steps: PositiveInt = 300
    """Optimizer steps."""
    batch: PositiveInt = 48
    """Demonstrations a step."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-3, decay="linear")


class EvalSettings(Section):
    split: str = "test"
    """Split of the task that is evaluated."""
    questions: PositiveInt = 200
    """Questions evaluated; a smaller split is taken whole."""
    samples: PositiveInt = 8
    """Rollouts a question (n of the unbiased Pass@k)."""
    k: PositiveInt = 4
    """k of Pass@k."""
    prefixes: NonNegativeInt = 32
    """Failed prefixes that the diagnostics resample."""
    prefix_samples: PositiveInt = 16
    """Calls resampled from each (METHOD: 16)."""


class RunSettings(Section):
    seed: int = 0
    """Seeds data order, sampling and ranking."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    trees_every: PositiveInt = 10
    """Steps between saved trajectory trees."""
    tensorboard: bool = False
    """Also write TensorBoard event files (extra "tracking")."""


class Config(Section):
    """All settings of a run."""

    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    rollout: RolloutSettings = RolloutSettings()
    tools: ToolsSettings = ToolsSettings()
    engine: EngineSettings = EngineSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    rl: RLSettings = RLSettings()
    sft: SFTSettings = SFTSettings()
    eval: EvalSettings = EvalSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.eval.split in self.task.streaming:
            raise ValueError(
                f"task.streaming: {self.eval.split!r} is what eval.split evaluates, and that needs "
                "a split of known size; leave it out"
            )
        if self.model.lora is not None:
            for name, stage in (("rl", self.rl), ("sft", self.sft)):
                if "freeze_vision" in stage.optimizer.model_fields_set:
                    raise ValueError(
                        f"{name}.optimizer.freeze_vision: no effect with model.lora, which trains "
                        "its adapters alone; remove it (model.lora.vision adapts the vision tower)"
                    )
        if self.rl.questions % self.rl.updates:
            raise ValueError(
                f"rl.updates: {self.rl.updates} does not divide rl.questions = {self.rl.questions}"
            )
        if self.rl.max_staleness and self.engine.vllm is None:
            raise ValueError(
                f"rl.max_staleness: {self.rl.max_staleness} needs servers that sample while this "
                "process trains; set engine.name = 'vllm', or 0"
            )
        if self.eval.k > self.eval.samples:
            raise ValueError(
                f"eval.k: Pass@{self.eval.k} needs at least {self.eval.k} samples, "
                f"eval.samples is {self.eval.samples}"
            )
        return self


def load_config(recipe: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """The checked settings of a TOML `recipe` with `section.key=value` overrides on top.

    Raises `ConfigError` naming the key and, for an unknown one, the nearest valid name.
    """
    values: dict[str, Any] = {}
    if recipe is not None:
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"no recipe at {path}; expected a TOML file such as lab.toml")
        try:
            values = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: expected section.key=value")
        _assign(values, key.strip().split("."), _value(text.strip()), override)
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Check plain values; raises `ConfigError`, a line a problem."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _assign(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
        values = typing.cast("dict[str, Any]", inner)
    values[path[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(problem: Mapping[str, Any]) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        names = list(_fields(path[:-1]))
        near = difflib.get_close_matches(path[-1], names, n=1)
        where = ".".join(path[:-1]) or "a recipe"
        hint = f"did you mean {near[0]!r}?" if near else f"{where} has {', '.join(names)}"
        return f"{key}: unknown setting; {hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}.{message}" if key else message
    return f"{key}: {message} (got {problem['input']!r})"


def _fields(path: Iterable[str]) -> Iterable[str]:
    found: Any = Config
    for name in path:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(name)
            found = field.annotation if field else None
            if type(None) in (kinds := typing.get_args(found)):  # a section that may be absent
                found = next(kind for kind in kinds if kind is not type(None))
        else:  # a name in a dict, or a place in a tuple
            found = next((a for a in typing.get_args(found) if a not in (str, ...)), None)
    if isinstance(found, type) and issubclass(found, BaseModel):
        return found.model_fields
    return ()
