"""The `axpo` command. Heavy imports happen inside commands, after every setting is checked."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from axpo import __version__
from axpo.config import Config, ConfigError, UserError, load_config, recipe_file
from axpo.config.secrets import masked
from axpo.folder import run_folder, write_whole

app = typer.Typer(
    help="Train vision-language agents to use tools with AXPO.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"axpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="print it and exit"),
    ] = False,
) -> None: ...


Recipe = Annotated[
    Path, typer.Argument(help="TOML file, or the name of a shipped one: lab (axpo recipes)")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="settings on top of the recipe"),
]
Out = Annotated[Path, typer.Option("--out", help="the run's folder; a run in it goes on")]


@app.command()
def quickstart(
    recipe: Annotated[str, typer.Argument(help="TOML file, or a shipped one's name")] = "lab",
    overrides: Overrides = None,
    out: Out = Path("runs/quickstart"),
) -> None:
    """SFT, then GRPO and AXPO beside each other, evaluation and report."""
    from axpo.quickstart import quickstart as run
    from axpo.quickstart import without_sandbox
    from axpo.report.finding import read_finding
    from axpo.report.screen import print_finding

    given = overrides or []
    if "=" in recipe:  # no recipe, and settings
        recipe, given = "lab", [recipe, *given]
    file = recipe_file(recipe)
    given += without_sandbox(load_config(file, given), file, given, out)
    config = load_config(file, given)
    with run_folder(out):
        _claim(out, config, ("sft", "train", "eval", "diagnose"))
        page = run(config, file, given, out)
    print_finding(read_finding(page))
    print(f"Report: {page}")


@app.command()
def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="TOML file, or the shipped one: study")
    ],
    out: Annotated[Path, typer.Option("--out", help="the study's folder; a study in it goes on")],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="commands at once; by default one a core, one on a GPU"),
    ] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="only rebuild tables and figures from the runs")
    ] = False,
    outcomes: Annotated[
        bool, typer.Option("--outcomes", help="only rebuild held-out figures from outcomes.csv")
    ] = False,
) -> None:
    """Variants of training, several seeds each, then their tables and figures."""
    from axpo.study.run import held_out_tables, run_study, study_tables

    if tables and outcomes:
        raise ConfigError("--tables and --outcomes: expected one of them")
    if (tables or outcomes) and jobs is not None:
        raise ConfigError(
            f"--jobs: no effect with --{'tables' if tables else 'outcomes'}; remove it"
        )
    if tables or outcomes:
        print(f"Study: {(study_tables if tables else held_out_tables)(file, out)}")
    else:
        with run_folder(out):
            print(f"Study: {run_study(file, out, jobs)}")


@app.command()
def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Dry run: the settings, one rendered and masked demonstration, token counts and memory."""
    config = load_config(recipe, overrides or ())
    from axpo.report.dryrun import show

    show(config, _model_path(config.model.path))


@app.command()
def profile(
    recipe: Recipe,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to measure, after one warm-up")] = 3,
    sft: Annotated[bool, typer.Option("--sft", help="measure `axpo sft` instead")] = False,
) -> None:
    """Where a step of `axpo train` spends its time: a few steps, measured and thrown away."""
    kind = "sft" if sft else "rl"
    if any(override.partition("=")[0].strip() == f"{kind}.steps" for override in overrides or ()):
        raise ConfigError(f"{kind}.steps: no effect on a profile; say --steps")
    config = load_config(recipe, overrides or ())
    model = _model_path(config.model.path)
    from axpo.report.profile import profile

    profile(config, model, kind, steps)


@app.command()
def sft(recipe: Recipe, out: Out, overrides: Overrides = None) -> None:
    """Cold-start model.path on the task's demonstrations."""
    config = load_config(recipe, overrides or ())
    with run_folder(out):
        _claim(out, config, ("sft",))
        from axpo.report.monitor import run_monitor
        from axpo.training import sft

        with run_monitor(out, f"SFT {out.name}", config.run.tensorboard) as monitor:
            last = sft.train(config, _model_path(config.model.path), out, monitor)
    print(f"Checkpoint: {last}")


@app.command()
def train(recipe: Recipe, out: Out, overrides: Overrides = None) -> None:
    """Train model.path (start and KL reference) with algorithm.name: grpo, axpo, arpo or rltf."""
    config = load_config(recipe, overrides or ())
    with run_folder(out):
        _claim(out, config, ("train",))
        from axpo.report.monitor import run_monitor
        from axpo.training import rl

        model = _model_path(config.model.path)
        title = f"{config.algorithm.name.upper()} {out.name}"
        with run_monitor(out, title, config.run.tensorboard) as monitor:
            last = rl.train(config, model, out, monitor)
    print(f"Checkpoint: {last}")


@app.command("eval")
def evaluate(recipe: Recipe, out: Out, overrides: Overrides = None) -> None:
    """Pass@1, Pass@k and the gap's rates of model.path, with intervals."""
    config = load_config(recipe, overrides or ())
    from axpo.evaluation.run import evaluate
    from axpo.report.monitor import run_monitor
    from axpo.report.tables import print_evaluation

    with run_folder(out), run_monitor(out, f"evaluate {out.name}") as monitor:
        result = evaluate(config, _model_path(config.model.path), out, monitor)
    print_evaluation(result)


@app.command()
def diagnose(recipe: Recipe, out: Out, overrides: Overrides = None) -> None:
    """The Thinking-Acting Gap of model.path: resample failed prefixes, count what they lead to."""
    config = load_config(recipe, overrides or ())
    from axpo.evaluation.run import diagnose
    from axpo.report.monitor import run_monitor
    from axpo.report.tables import print_diagnostics

    with run_folder(out), run_monitor(out, f"diagnose {out.name}") as monitor:
        result = diagnose(config, _model_path(config.model.path), out, monitor)
    print_diagnostics(result)


@app.command()
def serve(recipe: Recipe, overrides: Overrides = None) -> None:
    """Serve model.path with vLLM as [engine.vllm] says, until interrupted; prints the URLs."""
    config = load_config(recipe, overrides or ())
    from axpo.rollout.serving import serve

    serve(config, _model_path(config.model.path))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="evaluated run folders, baseline first")],
) -> None:
    """Paired differences of evaluated runs on the same questions, with intervals."""
    from axpo.report.tables import print_comparison

    print_comparison(runs)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders, start first")],
    out: Annotated[Path, typer.Option("--out", help="the page to write")] = Path("report.html"),
) -> None:
    """One self-contained HTML page: curves, tables and the trajectory trees."""
    from axpo.report.command import write_report
    from axpo.report.screen import print_finding

    print_finding(write_report(runs, out))
    print(f"Report: {out}")


@app.command()
def index(
    source: Annotated[Path, typer.Argument(help="folder of texts, a .jsonl file, or pictures")],
    out: Annotated[Path, typer.Option("--out", help="the index file to write")],
    pictures: Annotated[
        bool, typer.Option("--pictures", help="a gallery for image_search")
    ] = False,
) -> None:
    """Index texts for web_search, or a folder of pictures for image_search."""
    from axpo.tools.search.gallery import build_gallery
    from axpo.tools.search.index import build_index

    made = (build_gallery if pictures else build_index)(source, out)
    print(f"{made.facts.entries} entries, {made.size / 1e6:.1f} MB, {made.seconds:.1f} s: {out}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="the one to print or to copy")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE|FOLDER", help="copy it there")
    ] = None,
) -> None:
    """The recipes that ship with axpo; with a NAME its text, or a copy of it to change."""
    from axpo.recipes import UnknownRecipeError, copy, names, purpose, shipped

    if name is None and out is not None:
        raise ConfigError("--out: name the recipe to copy; `axpo recipes` lists them")
    try:
        if name is None:
            for each in names():
                print(f"{each:<18}{purpose(each)}")
        elif out is None:
            print(shipped(name).read_text(), end="")
        else:
            print(f"Recipe: {copy(name, out)}")
    except UnknownRecipeError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise UserError(f"--out {error.filename}: {error.strerror}; give another") from error


def _claim(out: Path, config: Config, commands: Sequence[str]) -> None:
    """Write the run's settings; refuse a folder that these commands made with other ones."""
    from axpo.evaluation.identity import OUTCOME, changes, outcome_settings

    path = out / "config.json"
    settings: dict[str, Any] = masked(config.model_dump(mode="json"))
    sections = tuple(dict.fromkeys(s for command in commands for s in OUTCOME[command]))
    if path.is_file():
        noted, now, defaults = (
            outcome_settings(values, sections)
            for values in (json.loads(path.read_text()), settings, Config().model_dump(mode="json"))
        )
        if said := changes(noted, now, defaults):
            raise ConfigError(
                f"{out} holds a run with other settings ({said}): "
                "give another --out, or the settings it was started with"
            )
    write_whole(path, json.dumps(settings, indent=1))


def _model_path(model: str) -> str:
    """A run folder's newest checkpoint, a checkpoint's model, the shipped base or `model` itself.

    Raises `ConfigError` for a folder that holds none of these.
    """
    if model == "lab-base":
        from axpo.tasks.lab import BASE

        return str(BASE)
    path = Path(model)
    if not path.is_dir():
        return model
    found = sorted(path.glob("checkpoints/step-*/model/config.json"))
    for config in [path / "config.json", path / "model" / "config.json", *reversed(found)]:
        if config.is_file() and "model_type" in config.read_text():
            return str(config.parent)
    raise ConfigError(f"{model}: no checkpoint in it; expected a run, a checkpoint or a model")


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    line: str | None = None,
) -> str:  # fmt: skip
    """Our own warnings are for whoever runs the command, not about a line of code."""
    if category.__module__.startswith("axpo."):
        return f"axpo: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def main() -> None:
    """Run the command; a wrong setting ends with its message, not with a traceback."""
    warnings.formatwarning = _format_warning
    try:
        app()
    except UserError as error:
        sys.exit(f"axpo: {error}")
