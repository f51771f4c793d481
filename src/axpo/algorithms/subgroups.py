"""Tool-using and no-tool subgroups, and the Thinking-Acting Gap's figures (arXiv 2605.28774).

Unscored rollouts (infrastructure failed) belong to no subgroup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from axpo.tree import CallStatus, Group, Trajectory

FAMILY = "family"
"""The key of `Group.meta` that holds the kind of question, if the examples tell it (in the lab each
kind has its own tool)."""


def scored(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """The trajectories with a reward."""
    return [t for t in trajectories if t.reward is not None]


def rewards(trajectories: Iterable[Trajectory]) -> list[float]:
    """The rewards of the scored trajectories, in order."""
    return [t.reward for t in trajectories if t.reward is not None]


def subgroup(group: Group, *, tool: bool) -> list[Trajectory]:
    """The scored rollouts that used a tool (or did not). A malformed call counts as use."""
    return [r for r in scored(group.rollouts) if r.uses_tool is tool]


def tools_used(groups: Iterable[Group]) -> list[str]:
    """The sorted names of the tools that answered at least one call of a rollout.

    A name that the model makes up is not among them.
    """
    calls = [call for g in groups for r in g.rollouts for call in r.calls]
    return sorted({c.name for c in calls if c.status is CallStatus.OK and c.name is not None})


def family_of(group: Group) -> str | None:
    """The question's family; None if its example names none."""
    return str(group.meta[FAMILY]) if FAMILY in group.meta else None


def families(groups: Iterable[Group]) -> list[str]:
    """The families of the questions, sorted."""
    return sorted({family for g in groups if (family := family_of(g)) is not None})


def callers(group: Group, tool: str) -> list[Trajectory]:
    """The scored rollouts that called `tool`, with success or not."""
    return [r for r in scored(group.rollouts) if any(c.name == tool for c in r.calls)]


def all_wrong(trajectories: Sequence[Trajectory]) -> bool:
    """The trigger: there are `trajectories`, and none is solved (arXiv 2605.28774)."""
    return bool(trajectories) and not any(t.solved for t in trajectories)


def gap(groups: Sequence[Group]) -> dict[str, float]:
    """The gap's figures over a batch; a rate whose denominator is empty is left out.

    - `reward_mean`: the mean reward;
    - `accuracy`: the share of solved rollouts; `accuracy_tool` and `accuracy_no_tool` are the same
      for rollouts with and without a tool;
    - `tool_rate`: the share of rollouts that tried a tool;
    - `all_wrong_tool`: of the questions with tool-using rollouts, the share where all of those are
      wrong; `all_wrong_no_tool` likewise;
    - `recovery_rate`: of the resampled prefixes of failed rollouts, the share with a solved
      continuation;
    - `tool_<name>_rate`, for each tool that was used: the share of rollouts that called it;
    - `tool_<name>_all_wrong`: of the questions with such rollouts, the share where all are wrong;
    - `family_<name>_tool_rate`, `family_<name>_accuracy`, for each family of questions: the tool
      rate and accuracy of the rollouts on its questions.
    """
    rollouts = [r for g in groups for r in scored(g.rollouts)]
    figures: dict[str, float] = {}

    def rate(name: str, hits: Iterable[float]) -> None:
        values = list(hits)
        if values:
            figures[name] = sum(values) / len(values)

    rate("reward_mean", rewards(rollouts))
    rate("accuracy", [float(r.solved or False) for r in rollouts])
    rate("tool_rate", [float(r.uses_tool) for r in rollouts])
    for name, tool in (("tool", True), ("no_tool", False)):
        members = [r for r in rollouts if r.uses_tool is tool]
        rate(f"accuracy_{name}", [float(r.solved or False) for r in members])
        subgroups = [s for g in groups if (s := subgroup(g, tool=tool))]
        rate(f"all_wrong_{name}", [float(all_wrong(s)) for s in subgroups])
    for tool in tools_used(groups):
        using = [c for g in groups if (c := callers(g, tool))]
        if rollouts:
            figures[f"tool_{tool}_rate"] = sum(map(len, using)) / len(rollouts)
        rate(f"tool_{tool}_all_wrong", [float(all_wrong(c)) for c in using])
    for family in families(groups):
        members = [r for g in groups if family_of(g) == family for r in scored(g.rollouts)]
        rate(f"family_{family}_tool_rate", [float(r.uses_tool) for r in members])
        rate(f"family_{family}_accuracy", [float(r.solved or False) for r in members])
    sources = [(g.trajectory(b.source), b) for g in groups for b in g.branches]
    recovered = [b.recovered for source, b in sources if all_wrong(scored([source]))]
    rate("recovery_rate", [float(r) for r in recovered if r is not None])
    return figures
