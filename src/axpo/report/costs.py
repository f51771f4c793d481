"""What a step of a recipe costs, as tables: samples, tokens, operations, and the card's memory.

All are upper bounds from sizes alone. The largest tree is the longest prompt once, N rollouts and
every continuation that one question could get, each at its token limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.costs.account import CLOSING, Account, account
from axpo.costs.hosts import host_memory
from axpo.costs.operations import (
    DEVICES,
    REFERENCE,
    UTILISATION,
    Device,
    Operations,
    step_operations,
    validation_operations,
)
from axpo.costs.sizes import ASSUMED, Kind, Loop, check_positions, crowded
from axpo.costs.steps import NODE, exchange, expected_step
from axpo.errors import ConfigError
from axpo.tree import Segment
from axpo.wording import duration, in_units, percent

CERTAIN = "bold"
TITLES: Mapping[Kind, str] = {"sft": "an SFT step", "rl": "an RL step"}


def print_costs(console: Console, loop: Loop, prompt: Segment, device: str) -> None:
    """Print both tables; raises `ConfigError` where the recipe cannot run on its card."""
    told = account(loop, prompt, device)
    title = TITLES[loop.kind]
    table = Table("what", "estimate", title=f"Costs of {title}", title_justify="left")
    for name, value in step_costs(told, prompt.id == ASSUMED, device).items():
        table.add_row(name, value)
    console.print(table)
    ranks = "" if loop.config.cluster is None else ", on each trainer's card"
    table = Table("what", title=f"Memory of {title}{ranks}", title_justify="left")
    table.add_column("at most", justify="right")
    for name, value in memory_lines(told):
        style = CERTAIN if name in {"state", "in all"} or name.startswith("there are") else ""
        table.add_row(Text(name, style), Text(value, style))
    console.print(table)
    if told.servers is not None:
        console.print(servers_text(told))
    if loop.config.cluster is not None and told.card.gpu:
        console.print(_hosts_text(told))
    if text := crowded(loop):
        console.print(Text(text, "yellow"))
    if told.refusal:
        raise ConfigError(told.refusal)
    check_positions(loop, prompt)


def memory_lines(told: Account) -> list[tuple[str, str]]:
    """(what, bytes) of the sum against the card, line by line."""
    found = told.found
    other = "without" if told.loop.config.model.gradient_checkpointing else "with"
    apart = ", not beside the tokens'" if found.pieces > 1 else ""
    state = [(name, size) for name, size in found.parts.items() if size]
    bounds = [
        (f"trunk of {found.trunk_tokens:,} tokens: keys, values, gradients", found.trunk),
        ("features of the pictures that pieces share", found.features),
        (f"activations of {found.pass_tokens:,} tokens", found.activations),
        ("their logits", found.logits),
        (f"activations of pictures{apart}", found.pictures),
        ("KV cache of the engine in this process", found.kv),
        ("share of the judge's vLLM server started beside", told.judge),
    ]
    if found.closing:
        bounds.append((f"{CLOSING}, not beside these", found.closing))
    if told.servers is not None and told.loop.config.cluster is None:
        bounds.append((f"share of the {told.servers.what} started beside", told.servers.taken))
    lines = [(name, in_units(size)) for name, size in state]
    lines.append(("state", in_units(sum(found.parts.values()))))
    lines += [(name, in_units(size)) for name, size in bounds if size]
    lines.append(("in all", in_units(told.total)))
    if told.card.memory is not None:
        verdict = "may not fit" if told.exceeds else "fits"
        lines.append((f"there are {told.card.what}", "cannot fit" if told.refusal else verdict))
    lines.append(
        (f"activations and pictures {other} gradient checkpointing", in_units(found.otherwise))
    )
    return lines


def servers_text(told: Account) -> str:
    """What a server's share holds, and how many rollouts are sampled at once."""
    servers, sizes = told.servers, told.found.sizes
    assert servers is not None
    places = servers.count * told.loop.config.engine.slots
    fit = servers.count * (servers.room // sizes.path)
    return (
        f"A server's {in_units(servers.share)} are {in_units(servers.weights)} of weights and, "
        "less activations and CUDA graphs (2 to 4 GB of a real model), at most "
        f"{servers.room:,} tokens of KV cache. {fit:,} rollouts of {sizes.path:,} tokens fit at "
        f"once, more of shorter ones; {places:,} are let in (engine.slots), the others of a step's "
        f"{sizes.rows:,} wait."
    )


def step_costs(told: Account, assumed: bool, device: str) -> dict[str, str]:
    """Counts, tokens, and what a GPU makes of a step's operations."""
    found, sizes = told.found, told.found.sizes
    counts = found.counts
    parameters = {
        "parameters": counts.text + counts.vision,
        "text model": counts.text,
        "vision tower": counts.vision,
        "trained": counts.trained,
    }
    prompt = f"{sizes.prompt:,} tokens, {sizes.pictures:,} of them pictures"
    work = step_operations(told.loop, found, told.at_once)
    return {
        **{name: f"{count / 1e6:,.1f} M" for name, count in parameters.items()},
        "samples per step": _samples(told.loop),
        f"longest prompt {'assumed' if assumed else 'seen'}": prompt,
        "longest possible path": f"{sizes.path:,} tokens",
        "largest possible tree": f"{sizes.tree:,} tokens",
        "max_tokens_per_micro_batch": f"{found.budget:,}: {found.verdict}",
        **_work(work, told.loop.kind, device),
        **_expected(told, _device(device)),
        **_validation(told, device),
    }


def _samples(loop: Loop) -> str:
    config = loop.config
    if loop.kind == "sft":
        return f"{config.sft.batch} demonstrations"
    bounds = config.algorithm.bounds(config.rl.questions)
    samples = f"{config.rl.questions * config.algorithm.rollouts} rollouts"
    return f"{samples} + at most {bounds.extra} {bounds.extra_name}" if bounds.extra else samples


def _operations(count: int) -> str:
    peta = count >= 1e15
    return f"{count / (1e15 if peta else 1e12):,.4g} {'P' if peta else 'T'}FLOP"


def _work(work: Operations, kind: Kind, device: str) -> dict[str, str]:
    """Operations and times on this GPU, on an H100 where there is none that is known."""
    known = _device(device)
    trained = f"{_operations(work.training)}: {duration(work.seconds(known)[1])} {_where(known)}"
    if kind == "sft":
        return {"training": trained}
    return {"sampling, all at their limits": _sampling(work, known), "training on it": trained}


def _expected(told: Account, known: Device) -> dict[str, str]:
    """How long a step is expected to take, and what its ranks exchange."""
    step = expected_step(told, known)
    parts = [f"training {duration(step.training)}"]
    if told.loop.kind == "rl":
        tail = f"sampling {duration(step.sampling)} (its longest path alone {duration(step.tail)})"
        beside = " beside it" if step.ahead else ""
        parts = [tail, f"{parts[0]}{beside}", f"weights to servers {duration(step.sending)}"]
    lines = {"expected of a step": f"{duration(step.total)}: {', '.join(parts)}"}
    sent = exchange(told)
    if sent.gathered_once:
        each, once = (
            f"{in_units(gathered)} gathered, {in_units(reduced)} reduced"
            for gathered, reduced in (
                (sent.gathered, sent.reduced), (sent.gathered_once, sent.reduced_once)
            )
        )  # fmt: skip
        lines["each rank, for a training pass"] = each
        lines["and once for an update"] = once
    return lines


def _hosts_text(told: Account) -> str:
    """What the first machine's main memory must hold."""
    parts = host_memory(told)
    told_parts = ", ".join(f"{name} {in_units(size)}" for name, size in parts.items())
    return (
        f"The first machine, of {NODE} GPUs, needs about {in_units(sum(parts.values()))} of main "
        f"memory: {told_parts}."
    )


def _validation(told: Account, device: str) -> dict[str, str]:
    """What the evaluations while training sample, and what of that one takes."""
    config = told.loop.config
    if told.loop.kind == "sft" or not config.eval.every:
        return {}
    count = 1 + -(-config.rl.steps // config.eval.every)
    each = config.eval.validation_questions * config.eval.validation_samples
    trained = config.rl.steps * config.rl.questions * config.algorithm.rollouts
    work = validation_operations(told.loop, told.found, told.at_once)
    return {
        "evaluations while training": f"{count} of at most {each:,} rollouts: {count * each:,}, "
        f"{percent(count * each / trained)} of the steps' {trained:,}",
        "sampling of one, at their limits": _sampling(work, _device(device)),
    }


def _sampling(work: Operations, known: Device) -> str:
    return (
        f"{_operations(work.sampling)}, {in_units(work.read)} read: "
        f"{duration(work.seconds(known)[0])} {_where(known)} of its peaks"
    )


def _where(known: Device) -> str:
    return f"on one {known.name} at {UTILISATION:.0%}"


def _device(device: str) -> Device:
    """This GPU as its data sheet has it; `REFERENCE` where there is none that is known."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((d for d in DEVICES if d.name in name), REFERENCE)
