"""Settings: recipes, overrides, and errors that name the key and the next step."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.losses import ClipLoss
from axpo.checks import check_names
from axpo.config import Config, load_config
from axpo.errors import ConfigError


def test_calls_need_a_turn_after_them() -> None:
    with pytest.raises(ConfigError, match=r"rollout.max_turns: 1 with tools.*to 2 or more"):
        load_config("rollout.max_turns=1")
    alone = ["rollout.max_turns=1", "rollout.tools=[]"]
    with pytest.raises(ConfigError, match=r"rollout.max_turns: 1 with tools"):
        load_config(*alone, 'tools.mcp=[{command=["server"]}]')
    assert load_config(*alone).rollout.max_turns == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cluster.shard=3", "cluster.shard: 3 does not divide trainers = 4"),
        ("cluster.address=10.0.0.1:6379", "cluster.address"),
        ("model.device=cuda:1", "model.device: 'cuda:1' with .cluster"),
        ("engine.servers=2", "engine.servers: no effect with .cluster., whose cluster.servers"),
    ],
)
def test_settings_that_do_not_fit_a_cluster_are_refused(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("cluster.trainers=4", "engine.name=vllm", "engine.python=python", setting)


def test_training_on_a_cluster_needs_servers() -> None:
    given = ("lab", "cluster.trainers=2")
    check_names(load_config(*given), "sft")
    with pytest.raises(ConfigError, match=r"engine.name: 'transformers' .* set it to 'vllm'"):
        check_names(load_config(*given), "train")
    check_names(load_config(*given, "cluster=false"), "train")


def test_the_papers_numbers_are_the_defaults() -> None:
    a = Config().algorithm
    assert isinstance(a, Axpo)
    assert (a.rollouts, a.continuations, a.extra_budget) == (8, 4, 0.25)
    assert (a.loss, a.kl) == (ClipLoss(low=0.2, high=0.4), 1e-3)
    assert Config().rollout.max_turns == 3


def test_overrides_win_over_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[algorithm]\nname = "axpo"\nrollouts = 4\n[rl.optimizer]\nbetas=[0.8,0.9]')
    config = load_config(recipe, "algorithm.rollouts=6", "model.path=some/folder", "run.seed=3")
    assert (config.algorithm.rollouts, config.model.path, config.run.seed) == (6, "some/folder", 3)
    assert config.rl.optimizer.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.stepz=3", ["rl.stepz", "'steps'"]),
        ("gpu.lr=1", ["gpu", "a recipe has model"]),
        ("rl.learning_rat=1", ["did you mean 'rl.optimizer.learning_rate' or 'sft.opt"]),
        ("eval.gamilies=[]", ["did you mean 'task.families'?"]),
        ("rl.urls=[]", ["did you mean 'engine.urls'?"]),
        ("run.timeouts=1", ["'tools.mcp.timeout' or 'engine.timeout' or 'judge.timeout'?"]),
        ("rl.steps=0", ["rl.steps", "greater than 0", "got 0"]),
        ("rl.steps=many", ["rl.steps", "integer", "'many'"]),
        ("rl.updates=3", ["rl.updates", "does not divide", "16"]),
        ("rl.learning_rate=1", ["did you mean 'rl.optimizer.learning_rate'?"]),
        ("learning_rate=1", ["'rl.optimizer.learning_rate' or 'sft.optimizer.learning_rate'?"]),
        ("model.rank=8", ["did you mean 'model.lora.rank'?"]),
        ("rl.batch=8", ["did you mean 'sft.batch'?"]),
        ("rollout.tools=zoom", ['a list such as ["zoom"]', "'rollout.tools=[\"zoom\"]'"]),
        ("rollout.tools=[a, b]", ['quotes: \'rollout.tools=["a", "b"]\'', "got '[a, b]'"]),
        ("rollout.tools=3", ["rollout.tools: expected a list (got 3)"]),
        ("model.lora=8", ["expected a section", "such as model.lora.rank"]),
        ("tools.limits=8", ["expected a section", "(got 8)"]),
        (
            "task.path=x.jsonl",
            [
                "task.path: belongs to task.name = 'data' or 'vstar'",
                "; remove it, or set one of these",
            ],
        ),
        ("task.name=dota", ["task.name: 'dota': did you mean 'data'?", "lab, data", "module:name"]),
        ("task.name=no_such:Task", ["task.name", "no module 'no_such'"]),
        (
            "task.name=json:JSONDecoder",
            ["no class of the section", "axpo.Task"],
        ),
        (
            "task.name=json:Nothing",
            ["json has no 'Nothing'; its classes of the section 'task' are 0"],
        ),
        (
            "algorithm.name=axpo.tasks.data.task:DataTask",
            ["no class of the section 'algorithm'"],
        ),
        ("algorithm.name=3", ["algorithm.name", "got 3"]),
        ("algorithm=grpo", ["expected a section", "such as algorithm."]),
        ("algorithm.loss=cispo", ["expected a section", "such as algorithm.loss.name"]),
        ("algorithm.loss.name=clop", ["algorithm.loss.name: expected one of 'clip', 'cispo'"]),
        ("algorithm.loss.hihg=1", ["algorithm.loss.hihg", "did you mean 'high'"]),
        ("task.name=data", ["task.path, hub", "files or a Hub id"]),
        ("rl.optimizer.decay=log", ["rl.optimizer.decay", "'cosine'"]),
        ("rl", ["'rl'", "section.key=value"]),
        ("rl.steps.more=1", ["rl.steps"]),
        ("engine.name=vllm", ["engine.python, urls", "axpo.engines.vllm.environment"]),
        ("rl.importance_cap=2", ["rl.importance_cap", "recompute"]),
        ("rl.importance_level=token", ["rl.importance_level", "without importance_cap"]),
        (
            "engine.python=p",
            ["belongs to engine.name = 'vllm'; remove it, or set engine."],
        ),
        (
            "engine={name='vllm',servers=2}",
            ["engine.python, urls", "axpo.engines.vllm.environment"],
        ),
        ("engine={name='vllm',phyton='p'}", ["engine.phyton", "'python'"]),
        ("engine={name='vllm',urls=['localhost:8000']}", ["engine.urls", "http://127.0.0.1:8000"]),
    ],
)
def test_bad_settings_are_named(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(override)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=grpo", "ranking=random"], "ranking: belongs to algorithm.name = 'axpo'; remove"),
        (["tool_bonus=0.1"], "tool_bonus: belongs to algorithm.name = 'grpo'; remove it"),
        (["loss.max_ratio=4"], "loss.max_ratio: belongs to algorithm.loss.name = 'cispo'"),
        (
            ["loss.name=cispo", "aggregation=token_mean", "loss.high=0.3"],
            "loss.high: belongs to algorithm.loss.name = 'clip'; remove it",
        ),
        (["kl=0", "max_k3=10"], "max_k3: no effect with kl = 0"),
        (["loss.dual_clip=1"], "loss.dual_clip: Input should be greater than 1"),
        (["name=grpo", "branch_at=first"], "branch_at: belongs to algorithm.name = 'axpo'"),
        (
            ["branch_at=least_confident", "prefix=scratch"],
            "branch_at: no effect with prefix = 'scratch'",
        ),
        (
            ["branch_at=least_confident", "resample=no_tool"],
            "branch_at: no effect with resample = 'no_tool'",
        ),
        (["entropy_gain=0.3"], "entropy_gain: belongs to algorithm.name = 'arpo'"),
        (["name=arpo", "extra_budget=0.3"], "extra_budget: belongs to algorithm.name = 'axpo'"),
        (
            ["name=arpo", "entropy_rule=draw", "entropy_threshold=0.6"],
            "entropy_threshold: no effect with entropy_rule = 'draw'",
        ),
        (["distill_weight=0.2"], "distill_weight: belongs to algorithm.name = 'rltf'"),
        (["name=rltf", "aggregation=token_mean"], "aggregation: 'token_mean' ignores the weights"),
        (["loss.name=cispo"], "aggregation: 'question_mean', but CISPO is token-normalised"),
    ],
)
def test_a_setting_without_effect_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^algorithm.{message}"):
        load_config(*[f"algorithm.{override}" for override in overrides])


def test_settings_of_the_baselines_are_taken() -> None:
    cispo = ["name=grpo", "loss.name=cispo", "aggregation=token_mean", "loss.max_ratio=4"]
    for overrides in (["name=grpo", "tool_bonus=-0.1"], ["name=grpo", "rollouts=16"], cispo):
        load_config(*[f"algorithm.{override}" for override in overrides])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["engine.urls=['http://h']", "engine.servers=2"],
            "servers: no effect with urls",
        ),
        (["engine.python=p", "engine.folder=f"], "folder: no effect with python"),
        (["engine.python=p", "engine.urls=['http://h']"], "expected one of them"),
        (
            ["engine.python=p", "engine.max_prefill_tokens=9"],
            "max_prefill_tokens: belongs to engine.name = 'transformers'",
        ),
    ],
)
def test_vllm_settings_without_effect_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("engine.name=vllm", *overrides)


def test_missing_and_broken_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file at .*none\.toml"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[rl\nsteps = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load_config(tmp_path / "bad.toml")


def test_every_setting_is_documented() -> None:
    def undocumented(section: type, path: str) -> list[str]:
        missing = []
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                missing += undocumented(inner, f"{path}{name}.")
            elif field.description is None:
                missing.append(path + name)
        return missing

    for name in ("axpo", "grpo", "arpo", "rltf"):
        assert undocumented(type(load_config(f"algorithm.name={name}")), "") == []
    data = ["task={name='data',path='x.jsonl'}", "engine={name='vllm',python='p'}"]
    assert undocumented(type(load_config(*data)), "") == []


def test_settings_import_no_torch() -> None:
    code = "import sys, axpo.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "setting",
    ["rl.optimizer.learning_rate=inf", "rollout.temperature=nan", "algorithm.kl=inf",
     "rl.optimizer.learning_rate=1e6"],
)  # fmt: skip
def test_numbers_that_ruin_a_run_are_refused(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_config(setting)
