"""A study's TOML file, typed and checked as a whole before anything runs.

It names a recipe, the seeds, and one table `[variants.NAME]` per variant with the overrides that
make it, written as on the command line. The settings of every variant are loaded here, so that a
variant whose settings are wrong is refused at once, by name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from axpo import recipes
from axpo.config import (
    Config,
    NonNegativeInt,
    PositiveInt,
    Section,
    apply_settings,
    load_config,
)
from axpo.errors import ConfigError, PluginError, StudyError
from axpo.plugins import load
from axpo.study.page import StudyPage

START = "start"
START_LABEL = "Start"
"""The name in the tables of the model from which every variant of a seed is trained."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_SAME = ("sft", "model", "task", "rollout", "tools", "eval")
"""Sections that no variant may change: variants start, act and are judged in the same way, and
differ only in training."""
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class VariantSettings(Section):
    """One way to train."""

    label: str | None = None
    """The variant's name in tables and figures; the name of its table by default."""
    group: str = "main"
    """Variants of a group share a figure of learning curves with the baseline's group."""
    overrides: tuple[str, ...] = ()
    """Settings that differ from the recipe, as "section.key=value"."""
    seeds: Seeds | None = None
    """Some of the study's seeds; all of them by default."""
    diagnose: bool | None = None
    """Whether to run `axpo diagnose` on the variant; by default as the study says."""


class StudySettings(Section):
    """The whole file."""

    recipe: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
    """Recipe file, from the study file's folder, or the name of a shipped one; or a list of them,
    each laid over those before it."""
    baseline: str
    """The variant with which the others are compared."""
    references: tuple[str, ...] = ()
    """Variants of the baseline's group with which those outside of it are compared as well."""
    looks: PositiveInt = 1
    """How often the baseline's group was compared, earlier runs included; the adjusted p-values of
    the group are multiplied by this."""
    seeds: Seeds
    """Values of run.seed: one training run each."""
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe for every variant and for SFT."""
    sft: Literal["each_seed", "shared", "none"] = "each_seed"
    """The start: one SFT run per seed, one (with the first seed) for all, or the model at
    model.path."""
    diagnose: bool = False
    """Whether to run `axpo diagnose` on every variant; the start is diagnosed if any variant is."""
    page: str | None = None
    """The class of further tables and figures (`axpo.study.page.StudyPage`), as "module:name"."""
    variants: Annotated[dict[str, VariantSettings], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Variant:
    """A checked variant."""

    name: str
    label: str
    group: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    diagnose: bool


@dataclass(frozen=True, slots=True)
class Study:
    """A checked study. `shared` holds the settings of SFT and of the start's evaluation, and `page`
    makes the parts of the study's page that are its own."""

    recipes: tuple[Path, ...]
    settings: StudySettings
    shared: Config
    variants: Mapping[str, Variant]
    page: StudyPage

    @property
    def starts(self) -> tuple[int, ...]:
        """The seeds that have a start of their own."""
        seeds = self.settings.seeds
        return seeds if self.settings.sft == "each_seed" else seeds[:1]

    @property
    def main(self) -> tuple[Variant, ...]:
        """The variants of the baseline's group, in the order of the file."""
        group = self.variants[self.settings.baseline].group
        return tuple(v for v in self.variants.values() if v.group == group)

    def start_of(self, seed: int) -> int:
        """The seed from whose start `seed` is trained."""
        return seed if self.settings.sft == "each_seed" else self.settings.seeds[0]

    def config(self, variant: str, seed: int) -> Config:
        """The settings of a cell, except for the model from which it starts."""
        return load_config(*self.recipes, *self.overrides(variant, seed))

    def overrides(self, variant: str, seed: int) -> tuple[str, ...]:
        """The command-line overrides of a cell; `variant` may be the start."""
        own = () if variant == START else self.variants[variant].overrides
        return (*self.settings.overrides, *own, f"run.seed={seed}")


def load_study(study: str | Path, overrides: Iterable[str] = ()) -> Study:
    """The checked study of a TOML file, or of the shipped one by name ("study").

    `key=value` overrides of the file's keys go on top. Raises `StudyError`, which names the key.
    """
    with _refused("STUDY"):
        path = recipes.find(study)
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:  # This includes a table that is given twice.
        raise StudyError(f"{path}: {error}") from error
    apply_settings(values, overrides)
    try:
        settings = StudySettings.model_validate(values)
    except ValidationError as error:
        raise StudyError("\n".join(f"{path}: {_explain(p)}" for p in error.errors())) from None
    _check_overrides("overrides", settings.overrides, ())
    beside = [path.parent / name for name in settings.recipe]
    with _refused(f"{path}: recipe"):
        files = tuple(
            recipes.find(file if file.is_file() else name)
            for file, name in zip(beside, settings.recipe, strict=True)
        )
    with _refused("overrides"):
        shared = load_config(*files, *settings.overrides)
    variants = {name: _variant(name, v, settings) for name, v in settings.variants.items()}
    checked = Study(files, settings, shared, variants, _page(settings.page))
    _check_seeds(checked)
    _check_variants(checked)
    return checked


def group_slug(group: str) -> str:
    """The group's part in the file name of a figure."""
    return "".join(c if c.isalnum() else "-" for c in group.lower())


def _variant(name: str, given: VariantSettings, settings: StudySettings) -> Variant:
    if not _NAME.fullmatch(name) or name == START:
        raise StudyError(
            f"variants.{name}: expected a name of a-z, 0-9, '_', '.' and '-' other than {START!r}"
        )
    _check_overrides(f"variants.{name}.overrides", given.overrides, _SAME)
    return Variant(
        name,
        given.label or name,
        given.group,
        given.overrides,
        given.seeds or settings.seeds,
        settings.diagnose if given.diagnose is None else given.diagnose,
    )


def _check_overrides(where: str, overrides: tuple[str, ...], shared: tuple[str, ...]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "run.seed":
            raise StudyError(f"{where}: {key} is set from `seeds`; remove it")
        if key.split(".")[0] in shared:
            raise StudyError(
                f"{where}: {key} must be the same for every variant; move it to `overrides`"
            )


def _check_seeds(study: Study) -> None:
    all_seeds = study.settings.seeds
    lists = {"seeds": all_seeds} | {
        f"variants.{v.name}.seeds": v.seeds for v in study.variants.values()
    }
    for key, seeds in lists.items():
        if len(set(seeds)) != len(seeds):
            raise StudyError(f"{key}: got {list(seeds)}, expected each seed once")
        if unknown := sorted(set(seeds) - set(all_seeds)):
            raise StudyError(f"{key}: {unknown} are not among the study's seeds {list(all_seeds)}")
    baseline = study.settings.baseline
    if baseline not in study.variants:
        near = difflib.get_close_matches(baseline, study.variants, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"variants are {', '.join(study.variants)}"
        raise StudyError(f"baseline: no variant {baseline!r}; {hint}")
    main = [v.name for v in study.main]
    for name in study.settings.references:
        if name not in main or name == baseline:
            raise StudyError(
                f"references: got {name!r}, expected variants of the baseline's group other than "
                f"the baseline: {', '.join(n for n in main if n != baseline) or 'there are none'}"
            )
    if missing := sorted(set(all_seeds) - set(study.variants[baseline].seeds)):
        raise StudyError(
            f"variants.{baseline}.seeds: the baseline needs all seeds, {missing} are missing"
        )


def _check_variants(study: Study) -> None:
    """Check that each variant's settings load, and that settings, labels and groups are
    distinct."""
    labels: dict[str, str] = {START_LABEL: START}
    groups: dict[str, str] = {}
    made: dict[str, str] = {}
    for variant in study.variants.values():
        where = f"variants.{variant.name}"
        if (other := labels.setdefault(variant.label, variant.name)) != variant.name:
            raise StudyError(f"{where}.label: {variant.label!r} is {other}'s as well")
        overrides = (*study.settings.overrides, *variant.overrides)
        with _refused(f"{where}.overrides"):
            config = load_config(*study.recipes, *overrides)
        if (other := groups.setdefault(group_slug(variant.group), variant.group)) != variant.group:
            raise StudyError(
                f"{where}.group: {variant.group!r} and {other!r} would share a file name"
            )
        if (other := made.setdefault(config.model_dump_json(), variant.name)) != variant.name:
            raise StudyError(f"{where}.overrides: the same settings as variants.{other}")


def _page(name: str | None) -> StudyPage:
    if name is None:
        return StudyPage()
    with _refused("page"):
        found = load(name, _is_page, "pages")
    if not _is_page(found):
        raise StudyError(f"page: {name!r} is no class that derives from axpo.study.page.StudyPage")
    return found()


def _is_page(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, StudyPage)


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """Turn the errors of the block into a `StudyError` that begins with `where`."""
    try:
        yield
    except (ConfigError, PluginError) as error:
        raise StudyError(f"{where}: {error}") from error


def _explain(problem: Mapping[str, Any]) -> str:
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        inside = VariantSettings if path[0] == "variants" else StudySettings
        near = difflib.get_close_matches(path[-1], inside.model_fields, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"expected {', '.join(inside.model_fields)}"
        )
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; a study needs it"
    return f"{key}: {problem['msg']} (got {problem['input']!r})"
