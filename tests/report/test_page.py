"""The report page: what it embeds, that hostile text stays text, and that it works in Chromium."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from axpo.config import parse_config
from axpo.models.loading import load_processor
from axpo.report import html as page_builder
from axpo.report.command import reading, strings
from axpo.report.finding import finding
from axpo.report.html import build_report, script_json
from axpo.report.runs import RunView
from axpo.report.trees import HELD_OUT, TreePayload, category, spread
from axpo.report.validation import validation_text
from axpo.rollout.rendering import Rendering
from axpo.tools import make_tools
from axpo.tools.base import ToolContext, View
from axpo.tree import Call, CallStatus, Group, Origin, Segment
from tests.support.families import family_checkpoint
from tests.support.findings import AHEAD, KEPT, LOST, START
from tests.support.pages import build
from tests.support.reported import HOSTILE, decode, make_group, make_run, make_validation
from tests.support.tiny import tiny_picture

CHROMIUM = next((p for n in ("chromium", "google-chrome") if (p := shutil.which(n))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--virtual-time-budget=4000",
)  # fmt: skip
# Appended to a copy of the page: clicks, keys and a pointer, and what each of them changed.
DRIVER = """
<script>
addEventListener("load", () => setTimeout(async () => {
  const all = (query) => [...document.querySelectorAll(query)];
  const seen = {};
  const pick = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const press = (key, on = document.body) =>
    on.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  seen.firstNote = document.querySelector(".option.on .branch-note")?.textContent;
  seen.families = all("#family-charts svg").map((s) =>
    [...s.querySelectorAll("text")].map((t) => t.textContent));
  const grown = (name, recovered) =>
    ({ name, calls: [], solved: false, branches: [{ recovered }] });
  seen.telling = telling({ order: [grown("1", false), grown("2", true), grown("3", true)] }).name;
  seen.strokes = all("#main-charts svg:last-child path.curve").map((p) =>
    p.getAttribute("d").split("M").length - 1);
  seen.ends = all(".detail .block .tokens").filter((b) => b.textContent.includes("<|im_end|>"))
    .map((b) => [b.parentElement.className.split(" ")[1], b.textContent.length > 10]);
  seen.charts = all("#main-charts svg").length;
  seen.validation = all("#validation-charts svg").map((s) => ({
    points: s.querySelectorAll('circle[r="2.5"]').length,
    best: [...s.querySelectorAll("circle.best")].map((c) =>
      [c.getAttribute("cx"), c.getAttribute("cy")]),
    curve: s.querySelector("path.curve").getAttribute("d").split(/[ML]/).slice(1),
  }));
  seen.curves = all("#main-charts path.curve").length;
  seen.bands = all("#timing-charts svg").map((s) => s.querySelectorAll("path.band").length);
  seen.bars = all(".stack").map((s) => Math.round(s.getBoundingClientRect().width));
  seen.pieces = all(".stack")[0].children.length;
  pick("pick-run", "1");
  pick("pick-step", "0");
  pick("pick-category", "recovered");
  seen.questions = all("#pick-group option").map((o) => o.textContent);
  all(".option")[0].click();
  seen.options = all(".option").map((o) => o.dataset.trajectory);
  seen.columns = all(".detail .column").map((c) => c.dataset.trajectory);
  seen.masked = all(".detail .column.masked").map((c) => c.dataset.trajectory);
  seen.prefix = all(".detail > .block .token.up").length;
  seen.cut = all(".cut").length;
  seen.boxes = all(".scene .box").length;
  seen.box = ["left", "top", "width", "height"].map((side) =>
    parseFloat(document.querySelector(".scene .box.chosen").style[side]));
  await Promise.all(all(".detail .observation img").map((i) => i.decode()));
  seen.crops = all(".detail .observation img").filter((i) => i.naturalWidth === 48).length;
  const token = document.querySelector(".detail .block .token.up");
  token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 50, clientY: 50 }));
  seen.tip = document.getElementById("tip").textContent;
  seen.question = document.querySelector(".question").textContent;
  press("j");
  seen.chosen = document.querySelector(".option.on").dataset.trajectory;
  seen.frozen = all(".detail .block.frozen .token").length;
  seen.trainedInFrozen = all(".block.frozen .token:not(.idle)").length;
  press("ArrowDown", document.getElementById("rollouts"));
  seen.afterArrow = document.querySelector(".option.on").dataset.trajectory;
  pick("pick-step", "-1");
  seen.heldOut = document.querySelector(".detail .credit").textContent;
  seen.heldOutStep = document.getElementById("pick-step").selectedOptions[0].textContent;
  press("n");
  const question = () => document.getElementById("pick-group").selectedOptions[0].textContent;
  const same = question();
  pick("pick-run", "0");
  seen.sameQuestion = [same, question()];
  pick("pick-run", "1");
  pick("pick-step", "0");
  pick("pick-category", "");
  const before = document.getElementById("pick-group").value;
  press("n");
  seen.moved = document.getElementById("pick-group").value !== before;
  seen.link = location.hash;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.error = document.documentElement.dataset.error ?? null;
  seen.pwned = document.documentElement.dataset.pwned ?? null;
  seen.scripts = document.scripts.length;
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 300));
</script>
"""


def chromium(page: Path, profile: Path, *arguments: str) -> str:
    """Run headless Chromium on a page; its dumped DOM."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed, and CI must check the report page in it")
        pytest.skip("Chromium is not installed")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def data_of(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match.group(1))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the driver saw after loading, clicking and typing."""
    driven = page.with_name("driven.html")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    text, found = policy.subn("", page.read_text())
    assert found == 1
    driven.write_text(text.replace("</body>", DRIVER + "</body>"))
    dom = chromium(
        driven, tmp_path_factory.mktemp("profile"), "--window-size=1280,900", "--dump-dom"
    )
    match = re.search(r'data-seen="([^"]*)"', dom)
    assert match is not None, re.findall(r'data-error="[^"]*"', dom)
    return json.loads(html.unescape(match.group(1)))


def test_a_run_without_a_sandbox_is_warned_of(tmp_path: Path) -> None:
    views = [RunView.load(make_run(tmp_path, name, steps=2, groups=1)) for name in ("grpo", "axpo")]
    settings = {"rollout": {"tools": ["python"]}, "tools": {"python": {"level": "unsafe"}}}
    asked_for = parse_config(settings).model_dump()

    def said(first: dict, second: dict) -> list[str]:
        views[0].config, views[1].config = first, second
        out = build_report(tmp_path / "report.html", views, {}, decode, finding({}, {}))
        return re.findall(r'<p class="warning" role="alert">(.*?)</p>', out.read_text())

    (warning,) = said(parse_config({}).model_dump(), asked_for)
    assert "PYTHON RUNS UNSAFE" in warning and f"({views[1].name})." in warning
    without_the_tool = asked_for | {"rollout": {"tools": ["image_zoom_in_tool"]}}
    contained = asked_for | {"tools": {"python": {"level": "landlock"}}}
    assert said(without_the_tool, contained) == []


def test_what_a_run_notes_stands_above_the_verdict_and_is_no_alarm(tmp_path: Path) -> None:
    view = RunView("AXPO", tmp_path, {"run": {"note": "Without <Python>."}})
    text = build_report(tmp_path / "r.html", [view], {}, decode, finding({}, {})).read_text()
    assert text.index("Without &lt;Python&gt;.") < text.index("<h1")
    assert 'role="alert"' not in text


def test_page_stands_alone_and_keeps_hostile_text_out_of_its_markup(page: Path) -> None:
    text = page.read_text()
    assert HOSTILE not in text and "<img src=x" not in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert text.count("<script") == text.count("</script>") == 2
    assert HOSTILE in data_of(text)["strings"]


def test_script_json_has_no_markup() -> None:
    text = script_json({"a": "</script><!--&\u2028\ud800"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028\ud800"}


def test_page_says_what_came_out(page: Path) -> None:
    text = page.read_text()
    head = text[text.index("<header") : text.index("</header>")]
    found = finding({"start": START, "GRPO": LOST, "AXPO": KEPT}, {("AXPO", "GRPO"): AHEAD})
    assert f'<h1 class="verdict">{found.headline}</h1>' in head
    assert all(said in head for said in (*found.said, *found.notes))
    assert "GRPO (12 steps) and AXPO (12 steps), each step 16 questions × 8 rollouts" in text
    assert "algorithm.name" in text and "Why trajectories ended" in text
    assert re.search(r"Learning takes 47 % of the step, sampling \d\d %, bookkeeping \d\d %", text)
    assert "Engine busy: GRPO 78 %, AXPO 58 % of sampling and resampling" in text


def test_page_says_which_step_was_the_best(page: Path) -> None:
    text = html.unescape(page.read_text())
    said = "Validation Pass@1 was best after step 4 (0.500, 0.250 before training)."
    cost = "3 evaluations of 64 questions of val, 4 rollouts each, took 10 % of the time."
    for name in ("GRPO", "AXPO"):
        assert f"{name}: {said} {cost}" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"best": None}, "None of the evaluations while training could be scored."),
        (
            {"best": {"step": 0, "metric": "reward_mean", "value": 0.25}},
            "Validation mean reward was best before training (0.250).",
        ),
        ({"ended": "no better"}, "of the time. Training ended early: no better."),
        ({"evaluations": []}, ""),
    ],
)
def test_evaluations_while_training_in_words(changed: dict, said: str) -> None:
    text = validation_text(make_validation([0.25, 0.5]) | changed)
    assert said in text and bool(said) == bool(text)


def test_pictures_are_embedded_once_and_tokens_once(page: Path) -> None:
    data = data_of(page.read_text())
    assert page.read_text().count("data:image/") == len(data["pictures"])
    assert len(data["groups"]) == 16
    group = next(g for g in data["groups"] if g["category"] == "recovered")
    source, continuation = group["rollouts"][0], group["branches"][0]["continuations"][0]
    assert source["pieces"][0]["at"] == 0
    assert continuation["start"] == continuation["pieces"][0]["at"] == group["branches"][0]["cut"]


BYTES = 330_000


def test_size_is_capped_and_the_instructive_groups_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_builder, "MAX_BYTES", BYTES)
    page = build(tmp_path)
    text = page.read_text()
    groups = data_of(text)["groups"]
    assert page.stat().st_size < BYTES
    assert 0 < len(groups) < 16
    assert "recovered" in {g["category"] for g in groups}
    assert f"the {len(groups)} most instructive of 16 groups" in text


def test_a_run_without_trees_metrics_or_evaluation_still_has_a_page(tmp_path: Path) -> None:
    page = build_report(
        tmp_path / "r.html", [RunView("AXPO", tmp_path)], {}, decode, finding({}, {}, ["AXPO"])
    )
    text = page.read_text()
    assert "Nothing is evaluated on held-out questions" in text
    assert all(f'id="{part}"' not in text for part in ("trees", "curves", "timing"))


def test_held_out_answers_of_every_run_to_the_same_questions_are_shown(page: Path) -> None:
    held_out = [g for g in data_of(page.read_text())["groups"] if g["step"] == HELD_OUT]
    assert sorted((g["run"], g["id"]) for g in held_out) == [
        (run, f"eval/{i}") for run in (0, 1) for i in (0, 1)
    ]
    assert all(not t["credit"] for g in held_out for t in g["rollouts"])


def test_groups_are_told_apart_by_what_they_teach() -> None:
    kinds = [category(make_group("q", seed, "axpo")) for seed in (0, 1, 2)]
    assert kinds == ["recovered", "hopeless", "mixed"]
    assert category(make_group("q", 1, "grpo")) == "tool_failed"


def test_steps_are_spread_with_both_ends() -> None:
    assert spread([0, 10], 8) == [0, 10]
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(
    "arguments",
    [None, [1], {"bbox_2d": "x"}, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, float("nan")]},
     {"bbox_2d": [True, 1, 2, 3]}, {"bbox_2d": [10**400, 0, 0, 0]}],
)  # fmt: skip
def test_a_call_without_a_box_draws_none(arguments: object) -> None:
    group = Group("q", Segment("q/p", Origin.PROMPT, (0,)))
    rollout = make_group("x", 0, "grpo").rollouts[4]
    rollout.calls = [Call(0, 2, None, arguments, CallStatus.MALFORMED)]
    group.rollouts.append(rollout)
    payload = TreePayload(decode)
    assert payload.add(0, 0, group, 10**6)
    assert payload.groups[0]["rollouts"][0]["calls"][0]["box"] is None


def test_a_page_reads_boxes_as_the_zoom_of_the_family_does(tmp_path: Path) -> None:
    """Pixels of the picture as it is seen, which the zoom cuts; or a thousandth of a side."""
    picture = tiny_picture(1, (300, 100))
    for kind in ("qwen2_5_vl", "qwen3_vl"):
        family_checkpoint(kind).save(tmp_path / kind)
        decode, sides = reading(tmp_path / kind)
        processor = load_processor(tmp_path / kind)
        across, down = sides(picture)
        absolute = kind == "qwen2_5_vl"
        assert (across, down) == (processor.seen_size(picture) if absolute else (1000, 1000))
        (tool,) = Rendering(processor, make_tools(["image_zoom_in_tool"])).tools.values()
        half = {"bbox_2d": [across / 2, 0, across, down], "label": "x", "img_idx": 0}
        (view,) = asyncio.run(tool(half, ToolContext((View.whole(picture),)))).views
        assert view.box == (150, 0, 300, 100)
        assert "".join(decode(processor.tokenizer.encode("one\n2"))) == "one\n2"


def test_a_character_of_several_tokens_stands_at_the_first() -> None:
    """A cut leaves what nobody can read: its part stands there as one such sign per token."""
    text = "aé😀\ufffd b".encode()

    def read(bytes_: bytes) -> list[str]:
        return strings(lambda ids: bytes(ids).decode("utf-8", "replace"), list(bytes_))

    assert read(text[:-5]) == ["a", "é", "", "😀", "", "", ""]
    assert read("é".encode()[:1] + b"b") == ["\ufffd", "b"]
    assert read("😀".encode()[:3]) == ["\ufffd"] * 3
    assert read(b"") == []


def test_a_decoder_that_loses_a_token_is_named() -> None:
    payload = TreePayload(lambda tokens: [""] * (len(tokens) - 1))
    with pytest.raises(ValueError, match="q/prompt: decode gave 18 strings for 19 tokens"):
        payload.add(0, 0, make_group("q", 0, "grpo"), 10**6)


def test_browser_loads_without_errors_and_runs_no_hostile_script(seen: dict) -> None:
    assert seen["error"] is None
    assert seen["pwned"] is None
    assert seen["scripts"] == 3
    assert seen["question"] == HOSTILE


def test_browser_draws_the_curves(seen: dict) -> None:
    assert seen["charts"] == 4
    assert seen["curves"] == 7  # GRPO has no recovery


def test_browser_rings_the_best_evaluation_while_training(seen: dict) -> None:
    """Two charts, Pass@1 and tool rate, in which the second point of each of two runs is the
    best: every evaluation is a point of one unbroken, unsmoothed line."""
    assert len(seen["validation"]) == 2
    for chart in seen["validation"]:
        assert chart["points"] == 6 and len(chart["best"]) == 2 and len(chart["curve"]) == 3
        best = [float(v) for v in chart["best"][0]]
        assert [float(v) for v in chart["curve"][1].split(",")] == pytest.approx(best, abs=0.06)


def test_browser_stacks_the_phases_of_each_run(seen: dict) -> None:
    # sampling, resampling, forward, backward, optimizer and the rest; GRPO has no resampling
    assert seen["bands"] == [6, 6]
    assert seen["pieces"] == 5
    assert seen["bars"][0] == pytest.approx(seen["bars"][1], abs=2) and seen["bars"][0] > 800


def test_browser_shows_a_tree_with_boxes_and_branches_side_by_side(seen: dict) -> None:
    source = "q0-0/r0"
    continuations = [f"{source}/c{k}" for k in range(4)]
    assert len(seen["questions"]) == 1
    assert seen["options"][:5] == [source, *continuations]
    assert seen["columns"] == [source, *continuations]
    assert seen["masked"] == [source]
    assert seen["cut"] == 1
    assert seen["prefix"] == 12  # the frozen prefix through the call's opening tag
    group = make_group("q0-0", 0, "axpo", hostile=True)
    assert seen["boxes"] == sum(len(t.calls) for t in group.trajectories()) == 7
    x1, y1, x2, y2 = group.rollouts[0].calls[0].arguments["bbox_2d"]
    assert seen["box"] == pytest.approx([x1 / 10, y1 / 10, (x2 - x1) / 10, (y2 - y1) / 10])
    assert seen["crops"] >= 3


def test_browser_explains_a_token(seen: dict) -> None:
    for part in ("id22", "logprob", "advantage+", "streamprefix"):
        assert part in seen["tip"]


def test_browser_freezes_the_prefix_of_a_continuation(seen: dict) -> None:
    assert seen["chosen"] == "q0-0/r0/c0"
    assert seen["frozen"] == 12
    assert seen["trainedInFrozen"] == 0


def test_browser_follows_the_keyboard_and_links_what_it_shows(seen: dict) -> None:
    assert seen["afterArrow"] == "q0-0/r0/c1"
    assert seen["moved"]
    assert seen["link"].startswith("#run=AXPO&step=0&question=q0-")


def test_a_curve_is_not_drawn_over_steps_without_a_value(seen: dict) -> None:
    assert seen["strokes"][-1] == 2  # recovery, of which steps 3 to 8 have none


def test_the_end_of_a_turn_stands_with_its_call(seen: dict) -> None:
    assert seen["ends"] and all(end == ["call", True] for end in seen["ends"])


def test_browser_opens_on_a_recovered_rollout(seen: dict) -> None:
    assert seen["firstNote"].startswith("✂ recovered")
    assert seen["telling"] == "2"  # the first is one that was not


def test_curves_of_tool_use_reach_from_0_to_100_per_cent_and_name_their_axis(seen: dict) -> None:
    assert len(seen["families"]) == 2
    for texts in seen["families"]:
        assert "0 %" in texts and "100 %" in texts and "step" in texts


def test_browser_shows_held_out_answers_and_keeps_the_question_from_run_to_run(seen: dict) -> None:
    assert seen["heldOutStep"] == "held out"
    assert seen["heldOut"] == "Held out: evaluated, not trained on."
    first, second = seen["sameQuestion"]
    assert first == second and first.startswith("eval/")


def test_a_box_in_other_units_is_drawn_where_it_was_cut(tmp_path: Path) -> None:
    """On a page of a model in whose boxes a picture is 2000 wide and 500 high."""
    view = RunView.load(make_run(tmp_path, "grpo", steps=2, groups=1))
    page = build_report(
        tmp_path / "r.html", [view], {}, decode, finding({}, {}), sides=lambda _: (2000, 500)
    )
    dom = chromium(page, tmp_path / "profile", "--window-size=1280,900", "--dump-dom")
    style = r'class="box [^>]*style="left: ([\d.]+)%; top: ([\d.]+)%; width: ([\d.]+)%; height: '
    drawn = {tuple(map(float, found)) for found in re.findall(style + r"([\d.]+)%", dom)}
    made = [make_group(f"q{step}-0", 6 * step, "grpo") for step in (0, 1)]
    boxes = [c.arguments["bbox_2d"] for g in made for t in g.rollouts for c in t.calls]
    assert any(y > 500 for _, y, _, _ in boxes) and any(y2 < 500 for *_, y2 in boxes)
    expected = {
        tuple(round(v, 3) for v in (x1 / 20, top, (x2 - x1) / 20, min(100, y2 / 5) - top))
        for x1, y1, x2, y2 in boxes
        for top in [min(100, y1 / 5)]
    }
    assert len(drawn) == 3 and {tuple(round(v, 3) for v in box) for box in drawn} <= expected


SCROLLED = """
<script>
let most = 0;
addEventListener("scroll", () => { most = Math.max(most, scrollY); });
setTimeout(() => parent.postMessage({ width: innerWidth, most: Math.max(most, scrollY),
  wide: document.documentElement.scrollWidth - innerWidth,
  cut: [...document.querySelectorAll(".scroll")].filter((s) => s.scrollWidth > s.clientWidth + 1)
    .map((s) => s.textContent.trim().slice(0, 60)) }, "*"), 2000);
</script>
"""
LISTEN = """
<script>
onmessage = ({ data }) => {
  document.documentElement.dataset["w" + data.width] = JSON.stringify(data);
};
</script>
"""


def test_page_stays_at_its_verdict_and_cuts_no_table(page: Path, tmp_path: Path) -> None:
    """In frames, as a window of Chromium cannot be 390 pixels wide."""
    driven, frames = page.with_name("scrolled.html"), page.with_name("frames.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    driven.write_text(text.replace("</body>", SCROLLED + "</body>"))
    widths = (390, 800, 1400)
    style = "height:900px;border:0"
    inside = [f'<iframe src="{driven.name}" style="width:{w}px;{style}"></iframe>' for w in widths]
    frames.write_text(LISTEN + "".join(inside))
    dom = chromium(frames, tmp_path / "profile", "--window-size=1500,900", "--dump-dom")
    for width in widths:
        match = re.search(rf'data-w{width}="([^"]*)"', dom)
        assert match is not None, dom[:300]
        found = json.loads(html.unescape(match[1]))
        assert found == {"width": width, "most": 0, "wide": 0, "cut": []}


def test_page_runs_under_its_own_policy_and_fits_a_phone(page: Path, tmp_path: Path) -> None:
    frame = page.with_name("phone.html")
    frame.write_text(f'<iframe src="{page.name}" style="width:390px;height:5600px;border:0">')
    picture = tmp_path / "phone.png"
    chromium(frame, tmp_path / "profile", "--window-size=500,5700", f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000
    dom = chromium(page, tmp_path / "profile2", "--window-size=500,900", "--dump-dom")
    assert "data-error" not in dom.split("<head>")[0]
    assert dom.count('class="box ') > 3
