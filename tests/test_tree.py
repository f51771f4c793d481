"""The trajectory tree against hand-written expectations, and what holds for any tree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from axpo.errors import TreeError
from axpo.pictures import picture_digest
from axpo.tree import (
    Branch,
    Call,
    CallStatus,
    Group,
    ImageSpan,
    Node,
    Origin,
    Segment,
    StopReason,
    Trajectory,
    cut_segments,
)


def policy(id: str, *tokens: int) -> Segment:
    return Segment(id, Origin.POLICY, tokens, tuple(-t / 100 for t in tokens), version=3)


def seen(id: str, *tokens: int, images: tuple[ImageSpan, ...] = ()) -> Segment:
    return Segment(id, Origin.OBSERVATION, tokens, images=images)


def one_tool_group() -> Group:
    """Prompt 1 2; rollout a: 10-14 | observation 20 21 21 22 with a picture at 1..3 | 15 16."""
    picture = (ImageSpan("pic", 1, 2),)
    a = Trajectory(
        "a", [policy("a0", 10, 11, 12, 13, 14), seen("a1", 20, 21, 21, 22, images=picture),
              policy("a2", 15, 16)],
    )  # fmt: skip
    b = Trajectory("b", [policy("b0", 30, 31)])
    return Group("g", Segment("g/prompt", Origin.PROMPT, (1, 2)), rollouts=[a, b])


def add(branch: Branch, id: str, *segments: Segment) -> Trajectory:
    branch.continuations.append(Trajectory(id, list(segments)))
    return branch.continuations[-1]


def tokens(segments: list[Segment] | tuple[Segment, ...]) -> list[int]:
    return [t for s in segments for t in s.tokens]


def outline(nodes: list[Node]) -> list[tuple[int, str, int, list[int]]]:
    return [(n.parent, n.trajectory, n.start, tokens(n.segments)) for n in nodes]


class TestSegment:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((Origin.POLICY, ()), "segment s: no tokens"),
            ((Origin.OBSERVATION, (1,), (-0.5,)), "segment s: 1 logprobs on a observation segment"),
            ((Origin.PROMPT, (1,), (-0.5,)), "segment s: 1 logprobs on a prompt segment"),
            ((Origin.POLICY, (1, 2), (-0.5,)), "segment s: 1 logprobs for 2 tokens"),
            ((Origin.POLICY, (1,), (), (ImageSpan("p", 0, 1),)), "segment s: a policy segment"),
            ((Origin.PROMPT, (1, 1), (), (ImageSpan("p", 1, 2),)), "segment s: image span 1.2"),
            ((Origin.PROMPT, (1, 1), (), (ImageSpan("p", 0, 0),)), "segment s: image span 0.0"),
            (
                (Origin.PROMPT, (1,) * 4, (), (ImageSpan("p", 2, 1), ImageSpan("q", 1, 1))),
                "segment s: image span 1.1 is out of order",
            ),
        ],
    )
    def test_errors_name_the_segment(self, arguments: tuple, message: str) -> None:
        with pytest.raises(TreeError, match=message):
            Segment("s", *arguments)

    def test_a_demonstration_has_no_logprobs(self) -> None:
        assert len(Segment("s", Origin.POLICY, (1, 2))) == 2

    def test_split_shares_out_everything(self) -> None:
        spans = (ImageSpan("p", 1, 2), ImageSpan("q", 4, 1))
        head, tail = seen("s", 5, 9, 9, 6, 9, 7, images=spans).split(3)
        assert head == seen("s", 5, 9, 9, images=(ImageSpan("p", 1, 2),))
        assert tail == seen("s", 6, 9, 7, images=(ImageSpan("q", 1, 1),))
        head, tail = policy("s", 1, 2, 3).split(1)
        assert (head, tail) == (policy("s", 1), policy("s", 2, 3))
        assert tail.version == 3

    def test_split_never_goes_through_a_picture(self) -> None:
        segment = seen("obs", 5, 9, 9, 9, images=(ImageSpan("pic", 1, 3),))
        for at in (2, 3):
            with pytest.raises(TreeError, match=r"segment obs: cut at .* image span 1\.\.4 .* pic"):
                segment.split(at)
        assert len(segment.split(1)[1].images) == 1

    @pytest.mark.parametrize("at", [-1, 0, 2, 3])
    def test_split_leaves_no_empty_side(self, at: int) -> None:
        with pytest.raises(TreeError, match="segment s: cut at"):
            policy("s", 1, 2).split(at)


class TestCut:
    def test_inside_a_segment_and_between_two(self) -> None:
        a, b = policy("a", 1, 2), seen("b", 3, 4)
        assert cut_segments([a, b], 1) == ([policy("a", 1)], [policy("a", 2), b])
        assert cut_segments([a, b], 2) == ([a], [b])
        assert cut_segments([a, b], 0) == ([], [a, b])
        assert cut_segments([a, b], 4) == ([a, b], [])
        assert cut_segments([], 0) == ([], [])

    @pytest.mark.parametrize("at", [-1, 3])
    def test_outside_names_the_last_segment(self, at: int) -> None:
        with pytest.raises(TreeError, match=f"cut at {at} .* 2 tokens that end in segment a"):
            cut_segments([policy("a", 1, 2)], at)
        with pytest.raises(TreeError, match="none"):
            cut_segments([], at)


class TestGroup:
    def test_a_continuation_has_its_sources_prefix(self) -> None:
        group = one_tool_group()
        branch = group.fork(group.trajectory("a"), 4, confidence=0.25)
        c = add(branch, "c", policy("c0", 40, 41))
        assert tokens(group.path(c)) == [1, 2, 10, 11, 12, 13, 40, 41]
        assert [s.id for s in group.path(c)] == ["g/prompt", "a0", "c0"]
        assert group.after_prompt(c)[0].logprobs == (-0.10, -0.11, -0.12, -0.13)
        assert (group.offset(c), group.offset(group.rollouts[0])) == (4, 0)
        assert group.branch_of(c) is branch
        assert group.branch_of(group.rollouts[0]) is None
        assert [t.id for t in group.trajectories()] == ["a", "b", "c"]

    def test_nested_cuts(self) -> None:
        group = one_tool_group()
        c = add(group.fork(group.rollouts[0], 4), "c", policy("c0", 40, 41), seen("c1", 50))
        d = add(group.fork(c, 5), "d", policy("d0", 60))
        e = add(group.fork(d, 6), "e", policy("e0", 70))
        assert tokens(group.after_prompt(d)) == [10, 11, 12, 13, 40, 60]
        assert tokens(group.after_prompt(e)) == [10, 11, 12, 13, 40, 60, 70]
        assert outline(group.nodes()) == [
            (-1, "", 0, [1, 2]),
            (0, "a", 0, [10, 11, 12, 13]),
            (1, "a", 4, [14, 20, 21, 21, 22, 15, 16]),
            (1, "c", 4, [40]),
            (3, "c", 5, [41, 50]),
            (3, "d", 5, [60]),
            (5, "e", 6, [70]),
            (0, "b", 0, [30, 31]),
        ]

    def test_lineage_of_all_at_once(self) -> None:
        group = one_tool_group()
        c = add(group.fork(group.rollouts[0], 4), "c", policy("c0", 40, 41), seen("c1", 50))
        d = add(group.fork(c, 5), "d", policy("d0", 60))
        lineage = group.lineage()
        assert [lineage.owner(d, i).id for i in range(6)] == ["a", "a", "a", "a", "c", "d"]
        assert [lineage.offset(t) for t in group.trajectories()] == [0, 0, 4, 5]
        assert lineage.branch(replace(d)) is None  # another one of the same name
        group.branches[1].source = "x"
        with pytest.raises(TreeError, match="group g has no trajectory x"):
            group.after_prompt(d)

    def test_several_branches_at_one_source(self) -> None:
        group = one_tool_group()
        a = group.rollouts[0]
        add(group.fork(a, 2), "c", policy("c0", 40))
        late = group.fork(a, 9)
        add(late, "d", policy("d0", 41))
        add(late, "e", policy("e0", 42))
        add(group.fork(a, 2), "f", policy("f0", 43))
        assert outline(group.nodes()) == [
            (-1, "", 0, [1, 2]),
            (0, "a", 0, [10, 11]),
            (1, "a", 2, [12, 13, 14, 20, 21, 21, 22]),
            (2, "a", 9, [15, 16]),
            (2, "d", 9, [41]),
            (2, "e", 9, [42]),
            (1, "c", 2, [40]),
            (1, "f", 2, [43]),
            (0, "b", 0, [30, 31]),
        ]

    def test_cut_0_and_a_cut_at_the_end(self) -> None:
        group = one_tool_group()
        b = group.rollouts[1]
        add(group.fork(b, 0), "c", policy("c0", 40))
        add(group.fork(b, 2), "d", policy("d0", 41))
        assert outline(group.nodes())[3:] == [
            (2, "d", 2, [41]),
            (0, "c", 0, [40]),
        ]
        assert tokens(group.path(group.trajectory("c"))) == [1, 2, 40]
        assert tokens(group.path(group.trajectory("d"))) == [1, 2, 30, 31, 41]

    def test_a_branch_where_a_continuation_begins(self) -> None:
        group = one_tool_group()
        c = add(group.fork(group.rollouts[0], 4), "c", policy("c0", 40))
        add(group.fork(c, 4), "d", policy("d0", 41))
        assert outline(group.nodes())[1:5] == [
            (0, "a", 0, [10, 11, 12, 13]),
            (1, "a", 4, [14, 20, 21, 21, 22, 15, 16]),
            (1, "c", 4, [40]),
            (1, "d", 4, [41]),
        ]

    def test_a_trajectory_without_tokens_has_no_node(self) -> None:
        group = one_tool_group()
        group.rollouts.append(Trajectory("empty", stop=StopReason.ENGINE_FAULT))
        group.fork(group.rollouts[0], 4)
        assert [n.trajectory for n in group.nodes()] == ["", "a", "a", "b"]
        assert tokens(group.path(group.rollouts[-1])) == [1, 2]

    def test_bad_forks(self) -> None:
        group = one_tool_group()
        a = group.rollouts[0]
        with pytest.raises(
            TreeError, match=r"segment a1: cut at 2 is inside the image span 1\.\.3"
        ):
            group.fork(a, 7)
        with pytest.raises(TreeError, match=r"cut at 12 is outside the 11 tokens .* a2"):
            group.fork(a, 12)
        c = add(group.fork(a, 4), "c", policy("c0", 40))
        with pytest.raises(TreeError, match=r"cut at 3 lies before trajectory c's .*from 4"):
            group.fork(c, 3)
        with pytest.raises(TreeError, match="group g has no trajectory x"):
            group.trajectory("x")
        assert len(group.branches) == 1

    def test_recovered(self) -> None:
        branch = Branch("a", 1)
        assert branch.recovered is None
        branch.continuations = [Trajectory("c", reward=None), Trajectory("d", reward=0.0)]
        assert branch.recovered is False
        branch.continuations.append(Trajectory("e", reward=1.0))
        assert branch.recovered is True

    def test_tool_use_and_score(self) -> None:
        call = Call(0, 1, None, None, CallStatus.MALFORMED, "no JSON")
        assert Trajectory("a", calls=[call]).uses_tool
        assert not Trajectory("a").uses_tool
        assert Trajectory("a", reward=0.0).scored
        assert not Trajectory("a").scored


def test_picture_digest_is_of_content_and_size() -> None:
    red = Image.new("RGB", (4, 2), "red")
    assert picture_digest(red) == picture_digest(red.convert("RGBA"))
    assert picture_digest(red) != picture_digest(Image.new("RGB", (2, 4), "red"))
    assert picture_digest(red) != picture_digest(Image.new("RGB", (4, 2), "blue"))


@st.composite
def segments(draw: st.DrawFn, name: str, counter: list[int]) -> list[Segment]:
    """Up to four segments whose tokens are all different; observations may hold a picture."""
    made: list[Segment] = []
    for i in range(draw(st.integers(0, 4))):
        size = draw(st.integers(1, 5))
        ids = tuple(range(counter[0], counter[0] + size))
        counter[0] += size
        if draw(st.booleans()):
            made.append(policy(f"{name}/{i}", *ids))
        else:
            start = draw(st.integers(0, size - 1))
            span = ImageSpan(f"{name}{i}", start, draw(st.integers(1, size - start)))
            made.append(seen(f"{name}/{i}", *ids, images=(span,)))
    return made


@st.composite
def trees(draw: st.DrawFn) -> Group:
    counter = [1]
    group = Group("g", Segment("g/prompt", Origin.PROMPT, (0,)))
    for i in range(draw(st.integers(1, 3))):
        group.rollouts.append(Trajectory(f"r{i}", draw(segments(f"r{i}", counter))))
    for i in range(draw(st.integers(0, 5))):
        source = draw(st.sampled_from(list(group.trajectories())))
        first = group.offset(source)
        cut = draw(st.integers(first, first + source.tokens))
        try:
            branch = group.fork(source, cut)
        except TreeError:  # inside a picture
            continue
        for k in range(draw(st.integers(0, 2))):
            name = f"b{i}c{k}"
            branch.continuations.append(Trajectory(name, draw(segments(name, counter))))
    return group


@given(trees())
def test_nodes_hold_each_stored_token_once(group: Group) -> None:
    stored = [
        *tokens([group.prompt]),
        *(t for x in group.trajectories() for t in tokens(x.segments)),
    ]
    laid_out = [t for node in group.nodes() for t in tokens(node.segments)]
    assert sorted(laid_out) == sorted(stored)
    assert len(laid_out) == len(set(laid_out))


@given(trees())
def test_each_path_is_its_parents_path_and_its_own(group: Group) -> None:
    for trajectory in group.trajectories():
        whole = tokens(group.after_prompt(trajectory))
        branch = group.branch_of(trajectory)
        prefix: list[int] = []
        if branch is not None:
            prefix = tokens(group.after_prompt(group.trajectory(branch.source)))[: branch.cut]
        assert whole == prefix + tokens(trajectory.segments)
        assert len(prefix) == group.offset(trajectory)


@given(trees())
def test_nodes_are_preorder_and_lead_to_every_path(group: Group) -> None:
    nodes = group.nodes()
    ancestors: list[list[int]] = []
    for i, node in enumerate(nodes):
        assert node.parent < i
        ancestors.append([] if node.parent < 0 else [*ancestors[node.parent], node.parent])
    for i, j in pairwise(range(len(nodes))):
        # Preorder: the parent of the next node is this one or an ancestor of it, so that every
        # subtree is one contiguous run.
        assert nodes[j].parent in {i, *ancestors[i]}
    ends = {
        tuple(t for k in [*ancestors[i], i] for t in tokens(nodes[k].segments))
        for i in range(len(nodes))
    }
    for trajectory in group.trajectories():
        assert tuple(tokens(group.path(trajectory))) in ends
    for i, node in enumerate(nodes[1:], start=1):
        above = sum(len(nodes[k]) for k in ancestors[i][1:])
        assert node.start == above


@given(trees(), st.data())
def test_a_cut_and_a_fork_keep_the_paths_tokens(group: Group, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(list(group.trajectories())))
    before = group.after_prompt(source)
    cut = data.draw(st.integers(0, sum(map(len, before))))
    try:
        head, tail = cut_segments(before, cut)
    except TreeError as error:
        assert "image span" in str(error)
        return
    assert tokens(head) + tokens(tail) == tokens(before)
    assert [i.digest for s in head + tail for i in s.images] == [
        i.digest for s in before for i in s.images
    ]
    assert sum(len(s.logprobs) for s in head + tail) == sum(len(s.logprobs) for s in before)
    if cut < group.offset(source):
        return
    branch = group.fork(source, cut)
    grown = add(branch, "new", policy("new0", 999_999))
    assert tokens(group.after_prompt(grown)) == [*tokens(before)[:cut], 999_999]
    assert tokens(group.after_prompt(source)) == tokens(before)
    assert [t for n in group.nodes() for t in tokens(n.segments)].count(999_999) == 1
