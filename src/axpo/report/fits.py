"""What of a recipe's model fits on how many GPUs: a row for each shipped overlay, by formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.config import Config, load_config, recipes_and_settings
from axpo.costs.account import Account, account
from axpo.costs.operations import REFERENCE, UTILISATION
from axpo.costs.sizes import Loop
from axpo.costs.steps import LENGTH, TRAFFIC, expected_step
from axpo.errors import ConfigError
from axpo.report.costs import CERTAIN
from axpo.tree import Segment
from axpo.wording import NONE, in_units, percent

ROWS = (
    (1, "full", ("full",)),
    (1, "LoRA", ("lora",)),
    (2, "full", ("full", "gpus-2")),
    (2, "LoRA", ("lora", "gpus-2")),
    (8, "full", ("gpus-8-full",)),
    (8, "LoRA", ("gpus-8-lora",)),
    (16, "full", ("gpus-16-full",)),
    (16, "LoRA", ("gpus-16-lora",)),
)
"""Numbers of GPUs, what is trained, and the recipes that are laid over a size for it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A row of the table; `told` is None where `why` says that the recipe cannot be."""

    gpus: int
    kind: str
    recipes: tuple[str, ...]
    told: Account | None
    why: str = ""

    @property
    def verdict(self) -> str:
        """Whether it fits."""
        if self.told is None or self.told.refusal:
            return "cannot fit"
        return "may not fit" if self.told.exceeds else "fits"


def fits(given: Sequence[str], model: Any, prompt: Segment, device: str) -> list[Fit]:
    """The rows for the recipe that a command was `given`, whose shapes are `model`'s, with `prompt`
    as the longest prompt. Overlays in `given` give way to each row's own."""
    files, settings = recipes_and_settings(
        [word for word in given if not any(word in recipes for *_, recipes in ROWS)]
    )
    settings = [text for text in settings if not text.startswith("cluster.")]
    found: list[Fit] = []
    for gpus, kind, recipes in ROWS:
        try:
            alone = ["cluster=false"] if gpus == 1 else []
            config = load_config(*files, *recipes, *settings, *alone)
            told = account(Loop(config, "rl", model), prompt, device)
        except ConfigError as error:
            found.append(Fit(gpus, kind, recipes, None, str(error)))
        else:
            found.append(Fit(gpus, kind, recipes, told))
    return found


def print_fits(
    console: Console, config: Config, given: Sequence[str], model: Any, prompt: Segment, device: str
) -> None:
    """Print the rows as a table, that of the recipe `config` itself in bold."""
    table = Table(title="What fits on how many GPUs", title_justify="left", box=SIMPLE_HEAD)
    table.collapse_padding = True
    heads = ("GPUs", "kind", "apart", "trainer", "server", "verdict", "a step", "laid over it")
    for head in heads:
        table.add_column(head, justify="left" if head in heads[-1:] else "right", no_wrap=True)
    found = fits(given, model, prompt, device)
    for fit in found:
        own = fit.told is not None and fit.told.loop.config == config
        table.add_row(*cells(fit), style=CERTAIN if own else "")
    console.print(table)
    for fit in found:
        if fit.told is None:
            gpus = f"{fit.gpus} GPU{'s' if fit.gpus > 1 else ''}"
            console.print(Text(f"On {gpus} ({' '.join(fit.recipes)}): {fit.why}", "yellow"))
    console.print(
        "Memory of a trainer's card and of a server's, at most; of one card with both, the "
        "server's is a part of it. What cannot fit is what every update takes, whatever is "
        f"sampled. A step is by formula, on {REFERENCE.name}s at {percent(UTILISATION)} of their "
        f"operations and {percent(TRAFFIC)} of their memory traffic, with trajectories of "
        f"{percent(LENGTH)} of their limit: nothing of this has been measured on GPUs."
    )


def cells(fit: Fit) -> list[str]:
    """A row's texts."""
    told, last = fit.told, " ".join(fit.recipes)
    if told is None:
        return [str(fit.gpus), fit.kind, NONE, NONE, NONE, fit.verdict, NONE, last]
    servers, cluster = told.servers, told.loop.config.cluster
    assert servers is not None
    minutes = f"{expected_step(told, REFERENCE).total / 60:.0f} min"
    return [
        str(fit.gpus),
        fit.kind,
        f"{cluster.trainers} + {cluster.servers}" if cluster else NONE,
        in_units(told.found.weights if told.refusal else told.total),
        in_units(servers.share),
        fit.verdict,
        NONE if told.refusal else minutes,
        last,
    ]
