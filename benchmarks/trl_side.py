"""TRL's GRPOTrainer on our questions: its own rollouts, and its own training step.

TRL runs as it is: `generate` of transformers for every turn, its own tool loop, loss and
optimizer, on a copy of the model as transformers loads it. What is set here is what a user sets:
the chat template (TRL's copy of Qwen3-VL's, with the generation prompt of a Thinking model), the
bans, and an environment, TRL's way to give a tool a picture. Gradient checkpointing, on in TRL by
default, is off: it would only cost TRL time here.

Two things differ from a stock set-up. torchvision is not needed: it serves only the video
processor, and `ImageTextProcessor` has none. And TRL derives a tool's schema from a docstring;
`_env_tools` is set to our tool's schema instead, so that prompts are equal token by token.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import (
    PrinterCallback,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from axpo.chat.control import FAMILY
from axpo.models.loading import Checkpoint, Processor
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders
from axpo.tools.arguments import parse_arguments
from axpo.tools.base import View
from axpo.tools.zoom import NAME, SPEC, ZoomArguments, crop
from benchmarks.harness import Side


def missing() -> str | None:
    """Why TRL cannot run here; None if it can."""
    if importlib.util.find_spec("trl") is None:
        return "trl is not installed: pip install trl==1.16.0 accelerate datasets"
    return None


class ImageTextProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without video."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class ZoomEnvironment:
    """A rollout's question and the pictures that it has seen; TRL makes one a rollout."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._views: list[View] = []

    def reset(self, place: int, **_: Any) -> list[dict[str, Any]]:
        """Begin the question at `place`; returns the user turn's content."""
        example = self._examples[place]
        self._views = [View.whole(image) for image in example.images]
        pictures = [{"type": "image", "image": image} for image in example.images]
        return [*pictures, {"type": "text", "text": FAMILY.plain(example.question)}]

    def image_zoom_in_tool(
        self, bbox_2d: list[float], label: str, img_idx: int
    ) -> list[dict[str, Any]]:
        """Zoom in on a region of an image.

        Args:
            bbox_2d: The region as [x1, y1, x2, y2], relative from 0 to 1000.
            label: What the region shows.
            img_idx: Which image, from 0, counting all images so far.
        """
        call = parse_arguments(
            ZoomArguments, {"bbox_2d": bbox_2d, "label": label, "img_idx": img_idx}
        )
        view = crop(self._views[call.img_idx], call.bbox_2d)
        self._views.append(view)
        return [{"type": "image", "image": view.image}]


@dataclass(frozen=True, slots=True)
class Limits:
    """Shape of a batch, and `micro_batch` rows of a forward and backward pass.

    `max_tokens` counts everything after the prompt.
    """

    questions: int
    rollouts: int
    max_tokens: int
    tool_turns: int
    micro_batch: int


def make_trainer(checkpoint: Checkpoint, examples: Sequence[Example], limits: Limits) -> Any:
    """TRL's trainer on a copy of the model; one update a step, no KL, learning rate 0.

    A row of its dataset is a place in `examples`, which may change between steps.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = limits.questions * limits.rollouts
    prompts = [[{"role": "user", "content": ""}]] * limits.questions
    trainer = GRPOTrainer(
        model=_plain_copy(checkpoint.model),
        reward_funcs=[_reward(examples)],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(prefix="trl-"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            max_steps=1,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            beta=0.0,
            loss_type="grpo",
            epsilon=0.2,
            epsilon_high=0.4,
            num_generations=limits.rollouts,
            per_device_train_batch_size=limits.micro_batch,
            gradient_accumulation_steps=rows // limits.micro_batch,
            max_completion_length=limits.max_tokens,
            max_tool_calling_iterations=limits.tool_turns,
            shuffle_dataset=False,
            generation_kwargs={"suppress_tokens": list(checkpoint.processor.banned)},
        ),
        train_dataset=Dataset.from_list([{"prompt": p, "place": i} for i, p in enumerate(prompts)]),
        processing_class=make_processor(checkpoint.processor),
        environment_factory=lambda: ZoomEnvironment(examples),
    )
    trainer.remove_callback(PrinterCallback)
    trainer._env_tools = {None: [SPEC]}
    return trainer


def _plain_copy(model: Any) -> Any:
    """The same weights in a model as transformers makes it, without our vision attention."""
    made = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(model.config.to_dict()))
    made.load_state_dict(model.state_dict())
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def make_processor(processor: Processor) -> ImageTextProcessor:
    """TRL's Qwen3-VL chat template, whose generation prompt opens thinking, and its parser."""
    from trl.chat_template_utils import qwen3_template, qwen3_vl_chat_template

    before, opening, after = qwen3_vl_chat_template.rpartition(r"<|im_start|>assistant\n")
    template = f"{before}{opening}<think>\\n{after}"
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.response_template = qwen3_template
    return ImageTextProcessor(processor.image_processor, tokenizer, chat_template=template)


def _reward(examples: Sequence[Example]) -> Any:
    """TRL's reward function: the last message graded where it is an answer, else 0."""

    async def score(message: Mapping[str, Any], example: Example) -> float:
        if message["role"] != "assistant" or message.get("tool_calls"):
            return 0.0
        said = message.get("content", "").strip()
        return (await Graders().grade_answer(example, said)).reward

    async def reward(completions: Any, place: list[int], **_: Any) -> list[float]:
        pairs = zip(completions, place, strict=True)
        return list(await asyncio.gather(*(score(c[-1], examples[i]) for c, i in pairs)))

    return reward


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What TRL's `_generate` made: token ids per rollout, and which of them the policy sampled."""

    prompts: list[list[int]]
    completions: list[list[int]]
    sampled: list[list[int]]
    messages: list[list[dict[str, Any]]]

    def work(self) -> dict[str, float]:
        """Rollouts, tokens sampled, turns, calls run."""
        roles = [message["role"] for messages in self.messages for message in messages]
        return {
            "samples": float(len(self.prompts)),
            "tokens": float(sum(sum(mask) for mask in self.sampled)),
            "turns": float(roles.count("assistant")),
            "calls": float(roles.count("tool")),
        }


def generate(trainer: Any, examples: Sequence[Example], rollouts: int) -> Rollouts:
    """TRL's rollouts of every example: prompts, generation and tool loop, without rewards."""
    environments = [ZoomEnvironment(examples) for _ in range(len(examples) * rollouts)]
    prompts = [
        [{"role": "user", "content": environment.reset(i // rollouts)}]
        for i, environment in enumerate(environments)
    ]
    # What `_generate_and_score_completions` sets before it calls `_generate`.
    trainer._batch_environments = [None] * len(environments)
    trainer._sync_tool_dicts = [{NAME: e.image_zoom_in_tool} for e in environments]
    trainer._async_tool_dicts = [{} for _ in environments]
    ids, completions, sampled, messages, *_ = trainer._generate(prompts)
    return Rollouts(ids, completions, sampled, messages)


def trl_rollouts(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    rollouts: int,
    tool_turns: int,
    max_tokens: int,
) -> Side:
    """The side that samples `rollouts` of each example."""
    rows = len(examples) * rollouts
    limits = Limits(len(examples), rollouts, max_tokens, tool_turns, micro_batch=rows)
    trainer = make_trainer(checkpoint, examples, limits)
    return lambda: generate(trainer, examples, rollouts).work()


def trl_step(checkpoint: Checkpoint, examples: Sequence[Example], limits: Limits) -> Side:
    """The side that trains one step on `examples` as they are when it runs."""
    trainer = make_trainer(checkpoint, examples, limits)
    generated: list[Rollouts] = []
    whole = trainer._generate

    def noted(prompts: Any) -> Any:
        out = whole(prompts)
        generated.append(Rollouts(*out[:4]))
        return out

    trainer._generate = noted

    def step() -> Mapping[str, float]:
        generated.clear()
        trainer.train()
        (rollouts,) = generated
        return rollouts.work() | {"reward": trainer.state.log_history[-1]["reward"]}

    return step
