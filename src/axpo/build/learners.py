"""What trains a recipe's model: this process, or ranks on a cluster (`axpo.cluster`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axpo.build.models import load_policy, load_reference
from axpo.config import Config, parse_config
from axpo.costs.sizes import Kind
from axpo.engines.base import Engine
from axpo.extras import require
from axpo.models.loading import Checkpoint
from axpo.training.base import Learner
from axpo.training.learner import LocalLearner
from axpo.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from axpo.cluster.start import Joined


def join_cluster(config: Config, folder: Path, path: str, *needed: str) -> Joined | None:
    """The cluster of the recipe, with room for what is `needed` ("ranks", "servers") to train or
    sample the model at `path`; None without `[cluster]`. `folder` is the run's.

    Raises `UserError`.
    """
    if config.cluster is None:
        return None
    require("ray", "cluster")
    from axpo.cluster.start import join

    # Ranks write checkpoints and weights; servers alone write logs.
    folders = {folder.absolute(), shared_folder(config, folder)} if "ranks" in needed else ()
    return join(config, sorted(folders), path, needed)


def shared_folder(config: Config, folder: Path) -> Path:
    """The folder of a cluster's run for what all nodes must see."""
    assert config.cluster is not None
    return folder.absolute() if config.cluster.folder is None else Path(config.cluster.folder)


def local_learner(
    config: Config,
    kind: Kind,
    policy: Checkpoint,
    reference: Checkpoint | None,
    engine: Engine | None,
    ranks: Ranks = ALONE,
) -> LocalLearner:
    """A learner of the recipe's `kind` of training in this process, or of one of several ranks."""
    if kind == "sft":
        return LocalLearner(policy, None, config.sft.optimizer, config.sft.steps, ranks=ranks)
    total, temperature = config.rl.steps * config.rl.updates, config.rollout.temperature
    return LocalLearner(policy, reference, config.rl.optimizer, total, temperature, engine, ranks)


def rank_learner(values: Mapping[str, Any], kind: Kind, path: str, ranks: Ranks) -> LocalLearner:
    """The learner of one of `ranks`, of the recipe with these plain `values` and the model at
    `path`."""
    config = parse_config(values)
    policy = load_policy(config, path, hollow=True)
    reference = load_reference(config, path, hollow=True) if kind == "rl" else None
    return local_learner(config, kind, policy, reference, None, ranks)


def gang_learner(
    config: Config,
    kind: Kind,
    path: str,
    joined: Joined,
    engine: Engine | None,
    say: Callable[[str], None],
) -> Learner:
    """A learner of the recipe on the cluster that was `joined`, which its end leaves."""
    from axpo.cluster.learner import GangLearner

    assert config.cluster is not None
    path = str(Path(path).absolute()) if Path(path).is_dir() else path  # else a Hub id
    # A class of settings is made for each recipe, so it cannot travel.
    make = partial(rank_learner, config.model_dump(exclude_unset=True), kind, path)
    return GangLearner(config.cluster, joined.ranks, make, engine, joined.leave, say)
