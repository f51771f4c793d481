"""Settings of the optimizer, and of each command's run."""

from __future__ import annotations

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
    """B: questions per step."""
    updates: PositiveInt = 2
    """Optimizer updates per step; from 2 on the clip is alive."""
    old_logprobs: Literal["engine", "recompute"] = "engine"
    """pi_old: the engine's own numbers, or the trainer's before the first update. In bfloat16 up to
    0.6 % of the engine's are outside the clip before anything is trained (docs/numerics.md)."""
    importance_cap: PositiveFloat | None = None
    """Truncated importance sampling: a token's surrogate weighs min(pi_old / pi_engine, cap), its
    KL term stays whole; 2 is TRL's default. Off by default: an engine that differs is refused at
    the start. Needs "recompute"."""
    importance_level: Literal["token", "sequence"] = "token"
    """"sequence" takes the ratio of a credited run as a whole. In bfloat16 rounding moves its log
    by 0.03 to 0.08 times the root of its tokens: hundreds are too many (docs/numerics.md)."""
    max_staleness: NonNegativeInt = 0
    """Sample ahead while a step is trained: so many versions the weights that sampled may lie
    behind those that are trained. 0 is strictly on-policy; needs an engine outside this process."""
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
    load: bool = True
    """Whether this process loads the model's weights as well, and compares an engine outside with
    them; false measures a served model alone (docs/vllm.md)."""
    by: tuple[str, ...] = ("family", "easy")
    """Names in the examples' meta: the figures are given again for the questions of each value;
    a name that no example has is left out."""
    prefixes: NonNegativeInt = 32
    """Failed prefixes that the diagnostics resample."""
    prefix_samples: PositiveInt = 16
    """Calls resampled from each (paper: 16)."""
    every: NonNegativeInt = 0
    """`axpo train` evaluates the split `validation` before its first step, after each so many steps
    and after the last; 0 turns this off."""
    validation: str = "val"
    """Split of the task that is evaluated while training. Neither the one at `split` nor training's
    own: what chooses a checkpoint cannot also measure it."""
    validation_questions: PositiveInt = 64
    """Questions of each such evaluation, the same ones; a smaller split is taken whole."""
    validation_samples: PositiveInt = 4
    """Rollouts a question of each such evaluation, with the same seeds."""
    metric: Literal["pass@1", "pass@k", "reward_mean"] = "pass@1"
    """Figure of these evaluations by which one is the best: its checkpoint is kept, and RUN/best
    names it as model.path. Of equal ones the earlier stays."""
    patience: PositiveInt | None = None
    """Training ends after so many of these evaluations in a row that are not better than the best;
    off by default."""

    @model_validator(mode="after")
    def _effective(self) -> EvalSettings:
        of_every = {
            "validation",
            "validation_questions",
            "validation_samples",
            "metric",
            "patience",
        }
        if self.every == 0 and (idle := of_every & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect with every = 0; set it")
        return self


class RunSettings(Section):
    seed: int = 0
    """Seeds data order, sampling and ranking."""
    checkpoint_every: PositiveInt = 10
    """Steps between checkpoints."""
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
