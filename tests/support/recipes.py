"""The shipped recipes of real models, as their commands are given them."""

from __future__ import annotations

SIZES = ("2b", "4b", "8b")
STAGES = ("axpo", "grpo", "sft")
REAL = [f"{size}/{stage}" for size in SIZES for stage in STAGES]


def given(name: str) -> tuple[str, ...]:
    """Recipes and settings of "2b/sft" and the like: the start is where `axpo sft` left it."""
    size, stage = name.split("/")
    recipes = ("qwen3-vl", f"qwen3-vl-{size}")
    if stage == "sft":
        return recipes
    return (*recipes, f"model.path=runs/qwen3-vl-{size}/sft", f"algorithm.name={stage}")
