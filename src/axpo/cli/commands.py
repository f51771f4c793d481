"""The commands. What they need is imported inside them: settings first, then the live view, then
what is heavy, so that help takes no time and no screen stays blank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from axpo import __version__
from axpo.errors import ConfigError, UserError

if TYPE_CHECKING:
    from axpo.config import Config


class Commands(TyperGroup):
    """The list of commands with whole sentences, over several lines where they need them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        found = [(name, self.get_command(ctx, name)) for name in names]
        rows = [(name, command.get_short_help_str(1000)) for name, command in found if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=Commands,
    help="Train vision-language agents to use tools with AXPO.",
    no_args_is_help=True,
    rich_markup_mode=None,
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


Given = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE... [SECTION.KEY=VALUE]...",
        help="TOML files, or names of shipped ones (axpo recipes), each over those before it, "
        "then settings on top; `axpo show RECIPE` lists them",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="the run's folder; a run in it goes on")]
Measured = Annotated[
    Path,
    typer.Option(
        "--out", help="folder of what is measured; where some of it is there, the rest is made"
    ),
]


def _load(given: list[str]) -> Config:
    """The settings of a command that needs a recipe."""
    from axpo.config import is_setting, load_config

    if is_setting(given[0]):
        raise ConfigError(f"{given[0]}: name a recipe before it; `axpo recipes` lists them")
    return load_config(*given)


@app.command()
def quickstart(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE]... [SECTION.KEY=VALUE]...", help="as of the other commands, or lab"
        ),
    ] = None,
    out: Out = Path("runs/quickstart"),
) -> None:
    """SFT, then GRPO and AXPO beside each other, evaluation and report."""
    from axpo.config import is_setting, load_config, recipes_and_settings
    from axpo.folder import RunFolder
    from axpo.quickstart import quickstart as run
    from axpo.quickstart import without_sandbox

    words = given or []
    files, settings = recipes_and_settings(
        ["lab", *words] if not words or is_setting(words[0]) else words
    )
    parts = [*map(str, files), *settings]
    parts += without_sandbox(load_config(*parts), parts, out)
    config = load_config(*parts)
    with RunFolder(out).alone():
        page = run(config, parts, out)
    from axpo.report.finding import read_finding
    from axpo.report.screen import print_finding

    print_finding(read_finding(page))
    print(f"Report: {page}")


@app.command()
def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="TOML file, or the shipped one: study")
    ],
    out: Annotated[Path, typer.Option("--out", help="the study's folder; a study in it goes on")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="keys of the study's file, set otherwise"),
    ] = None,
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
    from axpo.report.monitor import working
    from axpo.study.run import held_out_tables, run_study, study_tables

    if tables and outcomes:
        raise ConfigError("--tables and --outcomes: expected one of them")
    if (tables or outcomes) and jobs is not None:
        raise ConfigError(
            f"--jobs: no effect with --{'tables' if tables else 'outcomes'}; remove it"
        )
    if tables or outcomes:
        with working("study", "reading the study") as say:
            page = (study_tables if tables else held_out_tables)(file, out, say, overrides or ())
        print(f"Study: {page}")
    else:
        print(f"Study: {run_study(file, out, jobs, overrides or ())}")


@app.command()
def show(
    given: Given,
    everything: Annotated[
        bool, typer.Option("--all", help="every setting, and what it does")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|FILE",
            help="only the verdicts on ten answers: stored ones of a run's folder, or the lines of "
            'a file, each an answer to the first question or {"id": ..., "answer": ...}',
        ),
    ] = None,
) -> None:
    """Dry run: the settings, one rendered and masked demonstration, token counts and memory."""
    from axpo.checks import check_shown
    from axpo.report.monitor import PYTORCH, working

    config = _load(given)
    if answers is not None:
        if everything:
            raise ConfigError("--all: no effect with --answers; remove it")
        with working("show", "grading the answers") as say:
            from axpo.report.verdicts import graded_answers, print_verdicts

            verdicts = graded_answers(config, answers, say)
        print_verdicts(verdicts)
        return
    with working("show", "checking the settings") as say:
        check_shown(config)
        say(PYTORCH)
        from axpo.report.dryrun import show
    show(config, given, everything)


@app.command()
def profile(
    given: Given,
    steps: Annotated[int, typer.Option(min=1, help="steps to measure, after one warm-up")] = 3,
    sft: Annotated[bool, typer.Option("--sft", help="measure `axpo sft` instead")] = False,
) -> None:
    """Where a step of `axpo train` spends its time: a few steps, measured and thrown away."""
    from axpo.checks import CHECKING, check_names, check_parts
    from axpo.report.live import LiveView
    from axpo.report.monitor import PYTORCH

    kind = "sft" if sft else "rl"
    if any(word.partition("=")[0].strip() == f"{kind}.steps" for word in given):
        raise ConfigError(f"{kind}.steps: no effect on a profile; say --steps")
    config = _load(given)
    command = "sft" if sft else "train"
    check_names(config, command)
    with LiveView("profile", CHECKING) as view:
        check_parts(config, command, say=view.phase)
        view.phase(PYTORCH)
        from axpo.report.profile import measure, print_profile

        lines = measure(config, kind, steps, view)
    print_profile(config, kind, lines)


@app.command()
def sft(given: Given, out: Out) -> None:
    """Cold-start model.path on the task's demonstrations."""
    from axpo import api

    print(f"Checkpoint: {api.sft(_load(given), out).checkpoint}")


@app.command()
def train(given: Given, out: Out) -> None:
    """Train model.path (start and KL reference) with algorithm.name: grpo, axpo, arpo or rltf."""
    from axpo import api

    run = api.train(_load(given), out)
    print(f"Checkpoint: {run.checkpoint}")
    if run.best is not None:
        print(f"Best: {run.best}")
    if run.validation is not None:
        from axpo.report.validation import validation_text

        print(validation_text(run.validation))


@app.command("eval")
def evaluate(given: Given, out: Measured) -> None:
    """Pass@1, Pass@k and the gap's rates of model.path, with intervals."""
    from axpo import api

    result = api.evaluate(_load(given), out)
    from axpo.folder import RunFolder
    from axpo.report.tables import print_evaluation

    print_evaluation(result)
    print(f"Evaluation: {RunFolder(out).evaluation}")


@app.command()
def diagnose(given: Given, out: Measured) -> None:
    """The Thinking-Acting Gap of model.path: resample failed prefixes, count what they lead to."""
    from axpo import api

    result = api.diagnose(_load(given), out)
    from axpo.folder import RunFolder
    from axpo.report.tables import print_diagnostics

    print_diagnostics(result)
    print(f"Diagnosis: {RunFolder(out).diagnosis}")


@app.command()
def bench(
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="NAME[=PATH],...",
            help="benchmarks, built-in or module:Class (docs/benchmarks.md); PATH has the rows on "
            "this machine",
        ),
    ],
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE... [SECTION.KEY=VALUE]...",
            help="as of the other commands; what is measured is the recipe's model, with its tools",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the measurements and the table")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="samples for each question")] = 4,
    questions: Annotated[
        int | None, typer.Option(min=1, help="the first so many questions; all by default")
    ] = None,
    no_tools: Annotated[
        bool, typer.Option("--no-tools", help="measure the model without tools as well")
    ] = False,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="measure this model with tools as well")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="only compare the rows with what is known of them")
    ] = False,
) -> None:
    """Public benchmarks: model.path with its tools, beside runs without and the paper's figures."""
    idle = {"RECIPE": given, "--out": out, "--questions": questions, "--base": base}
    idle = [name for name, value in (idle | {"--no-tools": no_tools}).items() if value]
    if check:
        if idle:
            raise ConfigError(f"{', '.join(idle)}: no effect with --check; remove it")
        _check_rows(on)
        return
    if not given or out is None:
        lacking = "--out: name a folder" if given else "name a recipe; `axpo recipes` lists them"
        raise ConfigError(f"{lacking} (axpo bench RECIPE --on {on} --out FOLDER)")
    from axpo import api
    from axpo.config import is_setting

    for key in [word.partition("=")[0].strip() for word in given if is_setting(word)]:
        if key.partition(".")[0] in ("task", "eval") and key != "eval.load":
            raise ConfigError(
                f"{key}: no effect on a bench, which --on, --samples and --questions describe; "
                "remove it"
            )
    found = api.bench(
        _load(given), on, out, samples=samples, questions=questions, no_tools=no_tools, base=base
    )
    from axpo.folder import RunFolder
    from axpo.report.bench import print_bench

    print_bench(found)
    folder = RunFolder(out)
    print(f"Table: {folder.bench_table}")
    print(f"Samples: {folder.samples}")
    print(f"Page: {folder.bench_page}")


def _check_rows(on: str) -> None:
    """Print what the rows of benchmarks are; exit with 1 where they differ from their pages."""
    from axpo.build.cells import benchmarks
    from axpo.report.monitor import working

    with working("bench", "reading the rows") as say:
        from axpo.report.checked import print_checked
        from axpo.tasks.benchmarks.checking import check_benchmark

        found: list[Any] = []
        for benchmark in benchmarks(on):
            say(f"reading the rows of {benchmark.name}")
            benchmark.check()
            found += check_benchmark(benchmark)
    print_checked(found)
    if any(one.differs for one in found):
        raise typer.Exit(1)


@app.command()
def grade(
    run: Annotated[Path, typer.Argument(help="folder of a run that was evaluated or trained")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="task.grading, task.solved, judge.KEY and eval.k, over the run's own",
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="the answers of training, not of the evaluation")
    ] = False,
) -> None:
    """Grade a run's stored answers again, and print what that changes."""
    from axpo import api

    found = api.grade(run, *(settings or ()), training=training)
    from axpo.folder import RunFolder
    from axpo.report.verdicts import print_regraded

    print_regraded(found, run.name, RunFolder(run).regraded)
    print(f"Verdicts: {RunFolder(run).regraded}")


@app.command()
def contaminated(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="TRAIN...",
            help="what is trained on: recipes and settings as of the other commands, or data files",
        ),
    ],
    against: Annotated[
        str,
        typer.Option(metavar="NAME[=PATH],...", help="benchmarks, or data files, to compare with"),
    ],
    split: Annotated[
        str, typer.Option(help="the rows that are compared: train, or sft for demonstrations")
    ] = "train",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSONL file for all pairs")
    ] = None,
) -> None:
    """Find rows to train on that are a benchmark's; the exit status is 1 where there are any."""
    from axpo import api
    from axpo.config import is_setting, load_config
    from axpo.tasks.data.sets import SUFFIXES

    files = [word for word in given if not is_setting(word) and Path(word).suffix in SUFFIXES]
    words = [word for word in given if word not in files]
    words += ["task.name=data", f"task.path={files}"] if files else []
    found = api.contaminated(load_config(*words), against.split(","), split, out)
    from axpo.report.contaminated import print_contaminated

    print_contaminated(found, out)
    if found.pairs:
        raise typer.Exit(1)


@app.command()
def serve(given: Given) -> None:
    """Serve model.path with vLLM as [engine] says, until interrupted; prints the URLs."""
    from axpo.models.paths import model_path
    from axpo.report.monitor import PYTORCH, working

    config = _load(given)
    model = model_path(config.model.path)
    with working("serve", PYTORCH) as say:
        from axpo.engines.vllm.serving import serve, start

        servers = start(config, model, say)
    serve(servers)


judge = typer.Typer(
    cls=Commands, help="Measure the model that grades.", no_args_is_help=True,
    rich_markup_mode=None,
)  # fmt: skip
app.add_typer(judge, name="judge")


@judge.command("check")
def check_judge(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="JSONL file of labelled answers, or the shipped ones: labelled"
        ),
    ],
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]... [SECTION.KEY=VALUE]...", help="what has [judge]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON file for all of it")
    ] = None,
) -> None:
    """How far the recipe's judge agrees with labelled answers, and where it differs."""
    from axpo.config import load_config
    from axpo.report.live import LiveView

    config = load_config(*(given or ()))
    with LiveView("judge check", f"reading {file}", passing=True) as view:
        from axpo.report.judged import as_json, measure, print_checked

        found = measure(config, file, Path("runs/vllm"), view)
    print_checked(found)
    if out is not None:
        import json

        from axpo.folder import write_whole

        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(as_json(found), indent=1, ensure_ascii=False))
        print(f"JSON: {out}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="evaluated run folders, baseline first")],
) -> None:
    """Paired differences of evaluated runs on the same questions, with intervals."""
    from axpo.report.monitor import working

    with working("compare", "loading NumPy and what reads the runs") as say:
        from axpo.report.tables import compare_all, print_comparison

        compared = compare_all(runs, say)
    for pair, comparison in compared.items():
        print_comparison(pair, comparison)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders, start first")],
    out: Annotated[Path, typer.Option("--out", help="the page to write")] = Path("report.html"),
) -> None:
    """One self-contained HTML page: curves, tables and the trajectory trees."""
    from axpo.report.monitor import working

    with working("report", "loading NumPy and matplotlib") as say:
        from axpo.report.command import write_report
        from axpo.report.screen import print_finding

        found = write_report(runs, out, say)
    print_finding(found)
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
    from axpo.report.monitor import working

    with working("index", f"indexing {source}"):
        from axpo.search.gallery import build_gallery
        from axpo.search.index import build_index

        made = (build_gallery if pictures else build_index)(source, out)
    print(f"{made.facts.entries} entries, {made.size / 1e6:.1f} MB, {made.seconds:.1f} s: {out}")


@app.command()
def recipes(
    given: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="those to print or to copy")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE|FOLDER", help="copy them there")
    ] = None,
) -> None:
    """The recipes that ship with axpo; with a NAME its text, or a copy of it to change."""
    from axpo.recipes import copy, names, purpose, shipped

    if not given and out is not None:
        raise ConfigError("--out: name the recipe to copy; `axpo recipes` lists them")
    try:
        for name in given or ():
            if out is None:
                print(shipped(name).read_text(), end="")
            else:
                print(f"Recipe: {copy(name, out)}")
        for name in names() if not given else ():
            print(f"{name:<18}{purpose(name)}")
    except OSError as error:
        raise UserError(f"--out {error.filename}: {error.strerror}; give another") from error
