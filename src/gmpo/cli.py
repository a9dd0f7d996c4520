"""The command line: `gmpo quickstart | data | sft | check | train | report | watch | runs | export | verl`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from gmpo.cli_parts import late, path_of, say
from gmpo.cli_report import report, watch
from gmpo.cli_runs import export, runs
from gmpo.errors import ConfigError, DataError, GmpoError
from gmpo.limits import LARGEST_SEED
from gmpo.version import __version__

COMMANDS = ("quickstart", "data", "sft", "check", "train", "report", "watch", "runs", "export", "verl")
"""In the order in which a new user needs them."""
INTERRUPTED = 130
"""Exit status after Ctrl-C; after SIGTERM it is 143, where a scheduler ends the run 75."""


class Commands(TyperGroup):
    """Prints gmpo's own errors, and a stop by Ctrl-C, without a traceback. Lists commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=COMMANDS.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GmpoError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt as error:
            print("stopped at once", file=sys.stderr)
            raise typer.Exit(getattr(error, "code", INTERRUPTED)) from error


app = typer.Typer(
    cls=Commands,
    help="Reinforcement-learning post-training of reasoning language models around GMPO.\n\n"
    "New here? `gmpo quickstart` makes a small model and trains it in minutes on a CPU. "
    "From verl? `gmpo verl SCRIPT.sh` runs a script of verl's with gmpo in verl's place; `gmpo check` shows what "
    "each key does.\n\n"
    "In this order: `data` writes problems, `sft` teaches a model the form of an answer, `check` shows what a run "
    "comes to, `train` trains.",
    epilog="`gmpo COMMAND --help` has an example of each. README.md and docs/ of the repository: every setting "
    "(docs/configuration.md), data, rewards, metrics, and docs/troubleshooting.md from a symptom to its cause.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

# Overrides may look like options (`--config-name=..`): pass them on to the parser of overrides, which explains them.
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings under verl's keys; later ones win.")
]
ConfigFile = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        parser=path_of,
        metavar="FILE",
        help="YAML file with the same tree of keys; also one that verl saved.",
    ),
]


def _recipes() -> str:
    """The recipes that come with gmpo, from the first lines of their files."""
    lines = []
    for file in sorted(Path(__file__).with_name("config").joinpath("recipes").glob("*.yaml")):
        head = [line[2:] for line in file.read_text("utf-8").splitlines() if line.startswith("# ")]
        lines.append(f"- `{file.stem}`: {first_clause(' '.join(head))}")
    return "Recipes, for `recipe=NAME`; docs/configuration.md says what each sets:\n\n" + "\n".join(lines)


def first_clause(text: str) -> str:
    """The words before the first colon, semicolon or full stop; the stop of `Dr. GRPO` and of `0.9` is none."""
    return re.split(r"(?<!\bDr)[.:;](?=\s|$)", text, maxsplit=1)[0]


def _one(files: list[Path] | None) -> Path | None:
    if files and len(files) > 1:
        named = " and ".join(map(str, files))
        raise ConfigError(f"--config is given {len(files)} times ({named}); give one file, and the rest as KEY=VALUE")
    return files[0] if files else None


@app.command(context_settings=OVERRIDES, epilog=_recipes())
def train(
    context: typer.Context,
    settings: Settings = None,
    config: ConfigFile = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Profile one step: tables here, a trace in the run folder.")
    ] = False,
) -> None:
    """Train a policy by reinforcement learning.

    Example, GMPO on GSM8K (`gmpo data gsm8k --out data` writes the files):

        gmpo train recipe=gmpo actor_rollout_ref.model.path=MODEL_FOLDER \\
          data.train_files=data/train.parquet data.val_files=data/test.parquet \\
          data.train_batch_size=64 actor_rollout_ref.actor.ppo_mini_batch_size=16 \\
          actor_rollout_ref.rollout.n=8 trainer.total_epochs=1 trainer.test_freq=10

    The run folder (`trainer.default_local_dir`) holds configuration, metrics, samples, checkpoints and the final model.
    The same command resumes from the newest checkpoint; Ctrl-C finishes the step and writes one.

    `trainer.val_only=True` only evaluates: the run's newest checkpoint, or the model where there is none. Every key
    stands in docs/configuration.md, every metric in docs/metrics.md, reward functions in docs/rewards.md.
    """
    console = Console()
    resolved = late("gmpo.config", "load")([*(settings or []), *context.args], file=_one(config))
    run = late("gmpo.api", "train")(resolved, console=console, profile=profile)
    if resolved.config.trainer.val_only:
        say(console, f"validated, nothing was trained; figures and answers: {run.folder / 'val_only'}")
        return
    resumes = resolved.config.trainer.resume_mode == "auto"
    _report_end(console, run, f"{'the same command' if resumes else 'trainer.resume_mode=auto'} goes on from there")


@app.command(context_settings=OVERRIDES)
def sft(context: typer.Context, settings: Settings = None, config: ConfigFile = None) -> None:
    """Fine-tune a model on rows that carry an answer: the usual warm-up before `train`.

    Example (the answer of verl's rows stands in `extra_info.answer`, which `data.response_key` can change):

        gmpo sft model.path=MODEL_FOLDER data.train_files=data/train.parquet \\
          data.train_batch_size=32 optim.lr=1e-4 trainer.total_epochs=2

    The model is RUN_FOLDER/huggingface. Ctrl-C finishes the update and writes a checkpoint; the same command goes on.
    Every key stands in docs/configuration.md, the rows in docs/data.md.
    """
    console = Console()
    resolved = late("gmpo.config", "load_sft")([*(settings or []), *context.args], file=_one(config))
    run = late("gmpo.api", "sft")(resolved, console=console)
    _report_end(console, run, f"the model so far: {run.model}; the same command goes on from the checkpoint")


@app.command(context_settings=OVERRIDES)
def check(
    context: typer.Context,
    settings: Settings = None,
    config: ConfigFile = None,
    ready: Annotated[
        bool,
        typer.Option("--ready", help="Rehearse the start, up to reading weights; exit with 3 where it fails."),
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also every setting, what follows from others, and the memory by items.")
    ] = False,
    simulated: Annotated[
        bool,
        typer.Option("--simulate", help="Also shard the model on ranks that are not here: bytes, collectives."),
    ] = False,
) -> None:
    """Show what `train` would do with these settings, without starting anything and without network.

    Example:

        gmpo check recipe=gmpo actor_rollout_ref.model.path=MODEL_FOLDER \\
          data.train_files=data/train.parquet data.train_batch_size=64

    Prints answers and updates per step, steps, memory; which given keys are in effect, which change nothing and why;
    what is not here (model, data, columns, reward file, devices, and what this version cannot run yet); and, last,
    whether `gmpo train` would start.

    --simulate builds the model's real configuration on tensors without memory, and shards it by the code that trains:
    some seconds for 30 billion parameters on 64 ranks.

    Exit code 0: the settings make sense. 2: they are refused. 3, with --ready: `gmpo train` would not start. Every key
    stands in docs/configuration.md, memory in docs/scaling.md.
    """
    resolved = late("gmpo.config", "load")([*(settings or []), *context.args], file=_one(config))
    absent = late("gmpo.check.readiness", "not_here")(resolved)
    if ready and not absent:
        absent = late("gmpo.build.rehearsal", "what_stops")(resolved)
    report = late("gmpo.check.report", "check_report")(resolved, _rows_if_known, absent, everything=everything)
    Console().print(report)
    if simulated:
        Console().print(late("gmpo.build.simulation", "simulation_report")(resolved.config))
    if ready and absent:
        raise typer.Exit(3)


@app.command(context_settings=OVERRIDES)
def verl(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT.sh", parser=path_of, help="A shell script that starts verl's trainer.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the script's; other words are its own."),
    ] = None,
    check_only: Annotated[bool, typer.Option("--check", help="Show what the settings come to (`gmpo check`).")] = False,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command of `gmpo train` that it is.")] = False,
) -> None:
    """Run a script of verl's: its shell, with gmpo in the place of verl's trainer.

    Example:

        gmpo verl examples/gmpo_trainer/run_qwen3_8b_fsdp.sh --check \\
          trainer.total_epochs=1

    Launchers (`uv run`, `torchrun`, `ray job submit`) are left out. With --check and --print nothing of the script but
    its shell runs. Every command that is left out is named. The exit code is that of `gmpo train` or `gmpo check`.
    What differs from verl: "Move from verl" in README.md.
    """
    if check_only and print_only:
        raise ConfigError("--check and --print: give one of them")
    mode = "check" if check_only else "print" if print_only else "train"
    given = [*(words or []), *context.args]
    overrides = [word for word in given if "=" in word]
    outcome = late("gmpo.verl_script", "run_script")(
        script, mode, overrides, [word for word in given if word not in overrides]
    )
    for line in outcome.skipped:
        print(f"not run: {line}", file=sys.stderr)
    if outcome.code:
        raise typer.Exit(outcome.code)


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            help="gsm8k, math, math_lvl3to5, dapo_math_17k, math500, aime24, aime25, amc23, minerva, olympiadbench, "
            "countdown or stories."
        ),
    ],
    out: Annotated[Path, typer.Option(parser=path_of, metavar="FOLDER", help="Folder for the parquet files.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=path_of,
            metavar="PATH",
            help="Local file or folder, in the data set's own format or in verl's, not the hub.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_SEED, help="Seed of generated data and of --size; 0 when it is not given."),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Number of rows to keep or make.")] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path_of,
            metavar="FILE",
            help="Evaluation file whose problems are searched for in the training rows; repeatable.",
        ),
    ] = None,
    drop: Annotated[bool, typer.Option("--drop-contaminated", help="Leave out the rows that --against finds.")] = False,
) -> None:
    """Write a data set as parquet in verl's row schema, with the instruction that its scorer reads.

    From the hub (needs `pip install 'gmpo[hub]'`) or, with --from, from local JSONL or parquet files: in the data set's
    own format, or in verl's schema, whose instruction is then rewritten. `stories` (the quickstart's problems) and
    `countdown` are made here.

        gmpo data dapo_math_17k --from dapo.parquet --out data/dapo \\
          --against data/math500/test.parquet

    docs/data.md has the data sets, the rows, and how to write rows of your own.
    """
    if drop and not against:
        raise ConfigError("--drop-contaminated leaves out the rows that --against FILE finds; give such a file")
    console = Console()
    prepare, show = late("gmpo.data.prepare", "prepare"), late("gmpo.data.report", "prepared")
    tell, live = partial(say, console), console.is_terminal
    with console.status(f"preparing {name}") as status:
        pace = late("gmpo.data.report", "Pace")(status.update if live else tell, 0.5 if live else 30.0)
        chosen = {"seed": seed or 0, "size": size}
        written = prepare(name, out, source, **chosen, against=against or (), drop=drop, progress=pace)
    for line in show(written):
        tell(line)
    if seed is not None and size is None and any(file.source != "generated" for file in written):
        tell("note: --seed changed nothing: it chooses the rows of --size, and every row was kept")


@app.command()
def quickstart(
    out: Annotated[
        Path, typer.Option(parser=path_of, metavar="FOLDER", help="Folder for data, models and runs.")
    ] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything: model, data, sampling.")] = 1,
) -> None:
    """Make a small model, warm it up, train it with GMPO and show what changed: minutes on a CPU, no downloads.

    Example:

        gmpo quickstart --out runs/quickstart --seed 1

    Ctrl-C stops it, and the same command goes on. A finished one is left alone: name another folder with --out. What
    it shows is explained in README.md, "Quickstart".
    """
    outcome = late("gmpo.quickstart", "quickstart")(out, seed=seed, console=Console())
    if isinstance(outcome, int):
        raise typer.Exit(outcome)


for command in (report, watch, export, runs):
    app.command()(command)


def _rows_if_known(files: Sequence[str]) -> int | None:
    """Rows of data files that may be on another machine."""
    row_count: Callable[[str], int] = late("gmpo.data.files", "row_count")
    try:
        return sum(row_count(file) for file in files)
    except DataError:
        return None


def _report_end(console: Console, run: Any, how_to_go_on: str) -> None:
    if not run.finished:
        say(console, f"stopped after {run.steps} of {run.total_steps} steps; {how_to_go_on}")
        raise typer.Exit(run.stopped_by or INTERRUPTED)
    done = "done" if run.history else "nothing was left to do: the run is done"
    steps = late("gmpo.config.numbers", "counted")(run.steps, "step")
    say(console, f"{done} after {steps}; model: {run.model}")


def _version(value: bool) -> None:
    if value:
        print(f"gmpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app(prog_name="gmpo")


if __name__ == "__main__":
    main()
