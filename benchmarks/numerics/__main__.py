"""`python -m benchmarks.numerics NAME RECIPE ... [key=value ...]`: measure one case.

A case is a recipe's model and engine. Its figures go into the results file under NAME, and the page
beside it is written anew; the tokens themselves go into runs/numerics/NAME.npz. With --updates the
recipe's own training runs first, in which the weights are handed over after every step.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from axpo import stopping
from axpo.algorithms.losses import ClipLoss
from axpo.build.runs import rl_run
from axpo.config import Config, load_config
from axpo.training.parity import limit
from benchmarks.harness import machine
from benchmarks.numerics.figures import Tokens, figures
from benchmarks.numerics.measure import measure
from benchmarks.numerics.page import render

RESULTS = Path("docs/numerics/numerics.json")
RAW = Path("runs/numerics")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _options(arguments)
    told = None if options.name is None else _measured(options)
    results: dict[str, Any] = {}
    if options.results.is_file():
        results = json.loads(options.results.read_text())
    if told is not None:
        assert options.name is not None
        results[options.name] = results.get(options.name, {}) | told
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Page: {render(results, options.results.with_suffix('.md'))}")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """The case's figures, and how they were made unless it was measured before."""
    config = load_config(*options.settings, f"rl.steps={max(1, options.updates)}")
    raw, about = options.raw / f"{options.name}.npz", dict[str, Any]()
    if not options.again:
        began = time.time()
        run = rl_run(config, options.raw / options.name, lambda what: print(what, flush=True))
        found = stopping.run(measure(run, options.updates, *_sizes(options)))
        raw.parent.mkdir(parents=True, exist_ok=True)
        found.save(raw)
        about = _about(options, config, began)
    told = _figures(config, Tokens.read(raw))
    print(json.dumps({k: told[k] for k in ("tokens", "size", "weights", "limits")}, indent=1))
    return about | told


def _figures(config: Config, found: Tokens) -> dict[str, Any]:
    dtype, loss = getattr(torch, config.model.dtype), config.algorithm.loss
    low, high = (loss.low, loss.high) if isinstance(loss, ClipLoss) else (0.2, 0.4)
    return figures(found, lambda tokens: limit(dtype, tokens), low, high)


def _sizes(options: argparse.Namespace) -> tuple[int, int, int]:
    return options.questions, options.rollouts, options.also


def _about(options: argparse.Namespace, config: Config, began: float) -> dict[str, Any]:
    settings = [re.sub("=/.*/", "=", one) for one in options.settings]  # folders are nobody's
    return {
        "model": options.model or config.model.path,
        "dtype": config.model.dtype,
        "engine": config.engine.name,
        "updates": options.updates,
        "command": " ".join(["python -m benchmarks.numerics", options.name, *settings]),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - began),
        "machine": machine(),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("name", nargs="?", help="of the case; without one the page alone is made")
    parser.add_argument("settings", nargs="*", help="recipes and settings, as of `axpo train`")
    parser.add_argument("--model", help="what the page calls the model (model.path)")
    parser.add_argument("--updates", type=int, default=0, help="steps of training before (0)")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=4, help="of each question")
    parser.add_argument("--also", type=int, default=16, help="questions of the further passes")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"({RESULTS})")
    parser.add_argument("--raw", type=Path, default=RAW, help=f"folder for tokens ({RAW})")
    parser.add_argument("--again", action="store_true", help="figures anew, of the tokens there")
    options = parser.parse_intermixed_args(arguments)  # settings may follow options
    if options.name is not None and not options.settings:
        parser.error("no recipe, such as smollm2 (`axpo recipes`)")
    return options


if __name__ == "__main__":
    main()
