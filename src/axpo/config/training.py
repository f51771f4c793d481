"""Settings of the algorithm, of the optimizer, and of each command's run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from axpo.config.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class AlgorithmSettings(Section):
    """GRPO, AXPO and what they are compared with; every ablation is one of these settings."""

    name: Literal["grpo", "axpo", "arpo", "rltf"] = "axpo"
    """"grpo" is the baseline without resampling; "arpo" (arXiv 2507.19849) branches after
    observations by entropy; "rltf" (arXiv 2602.02482) learns from critiques and second attempts."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """N, rollouts a question (paper: 8; ARPO's: 16, its branches among them)."""
    continuations: Annotated[int, Field(ge=2)] = 4
    """K, continuations a selected prefix (paper: 4)."""
    extra_budget: Fraction = 0.25
    """r: at most floor(r B N) extra continuations a batch (paper: 0.25)."""
    loss: Literal["clip", "cispo"] = "clip"
    """"clip" is DAPO's asymmetric clip; "cispo" the capped weight of arXiv 2506.13585."""
    clip_low: PositiveFloat = 0.2
    """rho is clipped from below at 1 - clip_low (paper: 0.2)."""
    clip_high: PositiveFloat = 0.4
    """rho is clipped from above at 1 + clip_high (paper: 0.4)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Where A < 0 a token's loss is at most this times |A|, however large rho is
    (arXiv 1912.09729; verl's clip_ratio_c, there 3). Off by default, as in the paper."""
    max_log_ratio: PositiveFloat | None = None
    """log rho, and k3's log(pi_ref / pi), are clamped to this size (verl: 20). Off by default."""
    max_k3: PositiveFloat | None = None
    """A token's k3 is at most this (verl: 10). Off by default."""
    cispo_max_ratio: PositiveFloat = 5.0
    """CISPO: rho itself is capped at this value, with no floor (MiniMax: about 5). An absolute
    bound, where some libraries take the offset eps of 1 + eps."""
    kl: NonNegativeFloat = 1e-3
    """beta of the k3 KL estimate to the SFT policy (paper: 1e-3)."""
    aggregation: Literal["question_mean", "token_mean"] = "question_mean"
    """question_mean: Eq. 5, each slot 1/N, then mean over questions (choice)."""
    tool_bonus: float = 0.0
    """GRPO: added to a tool-using rollout's reward, for its advantage only; below 0 it is the tool
    penalty (paper: a constant)."""
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
    """RLTF: weight of -A log pi(second attempt | question) beside GRPO (its paper: 0.1)."""
    distill_floor: float = -5.0
    """RLTF: distilled tokens with a lower logprob are dropped (its paper: -5)."""
    feedback_weight: NonNegativeFloat = 0.1
    """RLTF: weight of the critiques' cross-entropy beside GRPO (its paper: 0.1)."""
    prefix: Literal["tool_call", "scratch"] = "tool_call"
    """"scratch" resamples whole rollouts: the ablation without prefix fix."""
    resample: Literal["tool", "no_tool"] = "tool"
    """"no_tool" triggers on and resamples no-tool rollouts instead (ablation)."""
    ranking: Literal["confidence", "random"] = "confidence"
    """"random" ranks candidate prefixes by a seeded draw (ablation)."""
    branch_at: Literal["first", "least_confident"] = "first"
    """The call that a prefix ends in: the first (paper), or the least confident of those that an
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
        if self.kl == 0 and self.max_k3 is not None:
            raise ValueError("max_k3: no effect with kl = 0; remove it")
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
    "loss": {
        "clip": {"clip_low", "clip_high", "dual_clip", "max_log_ratio"},
        "cispo": {"cispo_max_ratio"},
    },
}  # fmt: skip
"""A choice's key -> value -> the settings that have an effect with that value only."""


class OptimizerSettings(Section):
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
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
    """Truncated importance sampling: a token's surrogate weighs min(pi_old / pi_engine, cap), its
    KL term stays whole; 2 is TRL's default. Off by default: an engine that differs is refused at
    the start. Needs "recompute"."""
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
    """Calls resampled from each (paper: 16)."""


class RunSettings(Section):
    seed: int = 0
    """Seeds data order, sampling and ranking."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept."""
    trees_every: PositiveInt = 10
    """Steps between saved trajectory trees."""
    unscored_warn: Fraction = 0.02
    """Share of a step's (or an evaluation's) trajectories above which it is said that they could
    not be scored, and why (choice)."""
    unscored_stop: Fraction = 0.2
    """Share of a step's trajectories above which training stops: what is left would be of those
    alone whom the failure spared (choice)."""
    note: str | None = None
    """Said at the top of the run's report, as written: why it is what it is."""
    tensorboard: bool = False
    """Also write TensorBoard event files (extra "tracking")."""
