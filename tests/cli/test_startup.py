"""Starts that fail: what they say, how soon, and that they leave every folder as it was.

Through the command line itself. `refused` runs it in this process; cases that need nothing heavy
are also run in one without torch.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from axpo import checks
from axpo.cli.commands import app
from axpo.config import load_config
from axpo.errors import UserError
from axpo.models.tiny import write_tiny
from axpo.recipes import shipped
from tests.support.data_sets import write_jsonl
from tests.support.groups import tools_and_plain

RECIPE = shipped("lab")
FIND = ("task.families=['find']", "rollout.tools=['image_zoom_in_tool']")
DATA = (*FIND[1:], "task={name='data',path='{split}.jsonl'}")
RUNS = ("sft", "train", "eval", "diagnose")
ALL = (*RUNS, "quickstart")
ROW = {"question": "Which?", "answer": "7", "images": ["1.png"]}
TURNS = ["</think>\n7"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a data set of one row a split; nothing may be added to it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("1.png")
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", ROW)
    write_jsonl(tmp_path / "sft.jsonl", ROW | {"demonstration": TURNS})
    yield tmp_path


def refused(*args: str) -> str:
    """What a command that fails says; it leaves no file and no folder behind."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as error:
        app(args, standalone_mode=False)
    assert sorted(Path().rglob("*")) == before
    return str(error.value)


def start(command: str, *settings: str) -> str:
    return refused(command, str(RECIPE), "--out", "runs/deep/x", *settings)


CHEAP = [
    (RUNS, ["model.path=nope"], ["model.path: there is no folder nope; expected a run"]),
    (RUNS, ["model.path=runs/nope"], ["there is no folder runs/nope; expected"]),
    (("quickstart",), ["model.path=runs/nope"], ["there is no folder runs/nope"]),
    (RUNS, ["model.path=./nope"], ["there is no folder ./nope"]),
    (RUNS, ["model.path=/nope/x"], ["there is no folder /nope/x (/ holds "]),
    (RUNS, ["model.path=a/b/c"], ["there is no folder a/b/c"]),
    (RUNS, ["model.path=1.png"], ["1.png is a file"]),
    (ALL, ["model.path=."], ["no checkpoint in it"]),
    (RUNS, ["rollout.tools=['zoom']", FIND[0]], ["unknown tool 'zoom'", "image_zoom_in_tool"]),
    (("sft",), ["task={name='data',path='no.jsonl'}"], ["no.jsonl: no such file", "=sample"]),
    (("sft", "quickstart"), [*DATA, "task.path='{split}x.jsonl'"], ["one file per split"]),
    (("eval",), [*DATA, "eval.split=val"], ["no file for split 'val'"]),
    (("eval",), [*FIND, "eval.split=valid"], ["'valid'", "train, sft, val, test"]),
    (("eval", "diagnose", "quickstart"), ["eval.samples=2"], ["eval.k: Pass@4", "eval.samples"]),
    (("train",), [*FIND, "tools.search.gallery=lab", "rollout.tools=['image_search']",
                  "tools.search.gallery='no.index'"], ["no gallery index at no.index"]),
    (("train", "eval"), ["engine={name='vllm',python='no/python'}"],
     ["there is no program no/python", "axpo.engines.vllm.environment"]),
]  # fmt: skip


@pytest.mark.parametrize(("commands", "settings", "words"), CHEAP)
def test_what_is_wrong_is_said_and_nothing_is_left(
    commands: tuple[str, ...], settings: list[str], words: list[str]
) -> None:
    for command in commands:
        said = start(command, *settings)
        for word in words:
            assert word in said


SCRIPT = """
import json, sys, time
from axpo.cli.commands import app
from axpo.errors import UserError
for args in json.loads(sys.argv[1]):
    began = time.perf_counter()
    try:
        app(args, standalone_mode=False)
        said = "no error"
    except UserError as error:
        said = str(error)
    heavy = [name for name in ("torch", "transformers", "scipy.stats") if name in sys.modules]
    print(json.dumps([args, said, heavy, time.perf_counter() - began]))
"""


def without_imports(commands: list[list[str]]) -> list[str]:
    """What the commands say, one after another in a process that must not import torch."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(lines) == len(commands)
    for args, _, heavy, seconds in lines:
        assert heavy == [], args
        print(f"{seconds:.2f} s", args)
    return [said for _, said, _, _ in lines]


def test_cheap_mistakes_are_found_without_torch() -> None:
    out = ["--out", "runs/x"]
    cases = [
        ([command, str(RECIPE), *out, *settings], words)
        for commands, settings, words in CHEAP
        for command in commands
    ]
    cases += [
        (["show", str(RECIPE), "rollout.tools=['zoom']"], ["unknown tool 'zoom'"]),
        (["show", str(RECIPE), "model.path=."], ["no checkpoint in it"]),
        (["compare", "nowhere", "elsewhere"], ["no run at nowhere"]),
        (["compare", ".", "."], ["no evaluation in ."]),
        (["compare", "."], ["expected two or more", "baseline first"]),
        (["report", "nowhere"], ["no run at nowhere"]),
        (["report", "."], ["no checkpoint in ."]),
        (["profile", str(RECIPE), "model.path=runs/nope"], ["no folder runs/nope"]),
        (["serve", str(RECIPE), "model.path=runs/nope"], ["no folder runs/nope"]),
        (["train", str(RECIPE.with_name("study.toml")), *out], ["is a study", "its recipe (lab)"]),
    ]
    for said, (args, words) in zip(without_imports([c for c, _ in cases]), cases, strict=True):
        assert all(word in said for word in words), (args, said)
    assert not Path("runs").exists()


def test_runs_are_compared_without_torch(tmp_path: Path) -> None:
    from axpo.folder import RunFolder
    from axpo.store import save_groups

    for name, rewards in {"a": (0.0, 1.0), "b": (1.0, 1.0)}.items():
        group = tools_and_plain("g", rewards, rewards)
        group.example = "q"
        run = RunFolder(tmp_path / name)
        save_groups(run.evaluated.file(0), [group], run.pictures)
        run.evaluation.write_text(json.dumps({"k": 2}))
    assert without_imports([["compare", "a", "b"]]) == ["no error"]


@pytest.mark.usefixtures("no_sandbox")
@pytest.mark.parametrize("command", ALL)
def test_no_sandbox(command: str) -> None:
    # by name, for the quickstart would leave Python out
    said = start(command, "tools.python.level=landlock")
    assert "no sandbox for Python here" in said and "Linux 6.12" in said
    families, tools = shlex.split(said.partition("without it with ")[2])
    config = load_config("lab", families, tools)
    assert config.task.families == ("find", "look_up") and "python" not in config.rollout.tools


@pytest.mark.parametrize(
    ("package", "extra", "settings"),
    [
        ("sklearn", "lab", ()),
        ("peft", "lora", ("model.lora={}",)),
        ("tensorboard", "tracking", ("run.tensorboard=true",)),
    ],
)
def test_a_missing_extra(
    package: str, extra: str, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(name: str, *args: str) -> object:
        return None if name == package else find_spec(name, *args)

    monkeypatch.setattr("importlib.util.find_spec", hidden)
    for command in ("sft", "train", "quickstart"):
        assert f"pip install 'axpo[{extra}]'" in start(command, *FIND, *settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    for command in ALL:
        said = start(command, *FIND, "model.device=cuda:1")
        assert "model.device: 'cuda:1', but torch" in said and "'cpu' or 'auto'" in said
    assert "'gpu' is no device of torch" in start("train", *FIND, "model.device=gpu")


def test_memory_and_positions(tiny: str) -> None:
    model, small = (*DATA, f"model.path={tiny}"), "model.memory_gb=0.001"
    for command in ("sft", "train"):
        assert "needs" in start(command, *model, small)
        assert "positions" in start(command, *model, "rollout.max_tokens=300000")


def test_a_checkpoint_that_is_not_whole(tiny: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "mamba"}')
    assert "model_type 'mamba'; expected 'qwen3_vl' or" in start(
        "train", *FIND, "model.path=broken"
    )
    (broken / "config.json").write_text('{"model_type": "qwen3_5"}')
    said = start("train", *FIND, "model.path=broken")
    assert "model_type 'qwen3_5': its linear attention" in said
    (broken / "config.json").write_text('{"model_type": "llama"}')
    assert "has no tokenizer" in start("train", *FIND, "model.path=broken")
    (broken / "config.json").write_text((Path(tiny) / "config.json").read_text())
    for command in RUNS:
        assert "has no tokenizer" in start(command, *DATA, "model.path=broken")


def demonstrated(*turns: str) -> None:
    write_jsonl(Path("sft.jsonl"), ROW | {"id": "d1", "demonstration": list(turns)})


def test_demonstrations_that_cannot_be_learned(tiny: str) -> None:
    settings = (*DATA, f"model.path={tiny}", "rollout.max_turn_tokens=64", "sft.steps=1")
    demonstrated("x" * 114 + TURNS[0])
    said = start("sft", *settings)
    assert "example d1: turn 1 takes 118 tokens, the limits leave 64" in said
    assert "set rollout.max_turn_tokens, now 64, to at least 118" in said
    assert "max_tokens, now" not in said
    said = start("sft", *settings, "rollout.max_turn_tokens=200", "rollout.max_tokens=100")
    assert "raise rollout.max_tokens, now 100, by at least 18" in said
    demonstrated("<think>\nhm" + TURNS[0])
    assert "begins with '<think>', but this model's chat template" in start("sft", *settings)
    demonstrated("</think>\n<tool_call>\n{}\n</tool_call>", *TURNS)  # seen when it is replayed
    assert "call 1 is malformed" in start("sft", *settings)


def test_rows_that_are_wrong(tiny: str) -> None:
    write_jsonl(Path("train.jsonl"), ROW | {"images": ["none.png"]})
    for command in ("train", "quickstart"):
        assert "train.jsonl:1: images: no file 'none.png'" in start(command, *DATA)


def test_the_corrected_command_runs(tiny: str, tmp_path: Path) -> None:
    """In the folder of the failed one, also where that failed only while it sampled."""
    run = [str(RECIPE), "--out", "runs/x", *DATA, "sft.batch=1"]
    small = ["rollout.max_turn_tokens=64", f"model.path={tiny}"]
    with pytest.raises(UserError, match="no folder"):
        app(["sft", *run, "model.path=runs/tinny"], standalone_mode=False)
    with pytest.raises(UserError, match="eval"):
        app(["eval", *run, *small, "eval.k=9"], standalone_mode=False)
    app(["sft", *run, *small, "sft.steps=1"], standalone_mode=False)
    assert json.loads(Path("runs/x/config.json").read_text())["sft"]["steps"] == 1
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=r"other settings \(sft\.steps: 1 -> 2\)"):
        app(["sft", *run, *small, "sft.steps=2"], standalone_mode=False)
    assert sorted(Path().rglob("*")) == before


def test_only_what_was_begun_binds(tmp_path: Path) -> None:
    checks.note_settings(tmp_path, load_config(RECIPE))
    other = load_config(RECIPE, "sft.steps=1")
    checks.check_folder(tmp_path, other, ("sft",))
    (tmp_path / "metrics.jsonl").write_text("")
    checks.check_folder(tmp_path, other, ("sft",))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="other settings"):
        checks.check_folder(tmp_path, other, ("sft",))


def test_a_first_stage_that_fails_leaves_nothing_of_the_whole(tiny: str) -> None:
    """What only the stage itself can tell: here, that the memory does not do."""
    said = start("quickstart", *FIND, "model.memory_gb=0.001")
    assert "sft failed" in said and "axpo: model: every update needs" in said
    study = """recipe = "r.toml"\nbaseline = "grpo"\nseeds = [1]\n[variants.grpo]\n"""
    Path("study.toml").write_text(study)
    Path("r.toml").write_text("model.memory_gb = 0.001\n")
    said = refused("study", "study.toml", "--out", "out")
    assert "sft start 1 failed" in said and "axpo: model: every update needs" in said
    Path("r.toml").write_text("model.path = 'runs/nope'\n")
    assert "no folder runs/nope" in refused("study", "study.toml", "--out", "out")
