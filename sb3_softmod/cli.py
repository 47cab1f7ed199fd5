"""The command line, ``sb3-softmod``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shtab

from sb3_softmod.common.command_line import Parser
from sb3_softmod.common.errors import ConfigurationError, SoftModError
from sb3_softmod.common.files import check_file, check_folder, save_figure
from sb3_softmod.common.version import __version__
from sb3_softmod.envs.task_sets import full_name

if TYPE_CHECKING:
    from sb3_softmod.runs.run import Run

_COMPLETION = "--print-completion"

#: The extras that commands need, by what they import.
_EXTRAS = {
    **dict.fromkeys(("optuna", "rl_zoo3", "yaml"), "zoo"),
    **dict.fromkeys(("imageio_ffmpeg", "jinja2", "pandas", "rliable", "scipy", "sklearn", "vl_convert"), "plots"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the package end it with their message and status 2."""
    arguments = sys.argv[1:] if argv is None else argv
    if "" not in sys.path:
        sys.path.append("")  # modules of the user (--gym-packages) in the current folder, as for python -m
    try:
        args, rest = _parser(complete=_COMPLETION in arguments).parse_known_args(arguments)
        args.run(rest if "passes_on" in args else args)
    except SoftModError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        return _fail(f"This needs {package}, which is not installed: pip install 'sb3-softmod[{_EXTRAS[package]}]'")
    except OSError as error:  # a file that cannot be written
        return _fail(f"Cannot use {error.filename}: {error.strerror}." if error.filename else error)
    return 0


def _fail(message: object) -> int:
    print(f"sb3-softmod: {message}", file=sys.stderr)
    return 2


def _parser(complete: bool) -> Parser:
    """The parser of all commands.

    :param complete: with the options that the modules of some commands read themselves
    """
    parser = Parser(
        prog="sb3-softmod",
        description="Multi-task reinforcement learning with soft modularization on Stable-Baselines3.",
    )
    parser.add_argument("--version", action="version", version=f"sb3-softmod {__version__}")
    shtab.add_argument_to(parser, [_COMPLETION], help="print the completion of a shell, to be sourced by it")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)

    does = "train on three Meta-World tasks for about 5 minutes and show what was learned"
    demo = _command(commands, "demo", _demo, does, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the runs")
    demo.add_argument("--steps", type=int, default=12_000, help="steps of each environment, and gradient steps")
    demo.add_argument("--episodes", type=int, default=50, help="evaluation episodes of each task")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")

    for name, module, does in (
        ("train", "zoo.train", "train a method on a set of tasks, with RL Zoo"),
        ("adapt", "zoo.adapt", "let a trained policy learn new tasks; the old ones stay as they are"),
        ("grid", "grid.command", "train methods x task sets x seeds side by side, on this machine or on a Ray cluster"),
        ("enjoy", "zoo.enjoy", "play a trained policy, print success and return of each task, write a video"),
    ):
        parents = _options_of(module) if complete else []  # else their modules read the arguments
        run = partial(_pass_on, name, module)
        command = _command(commands, name, run, does, add_help=False, parents=parents)
        command.set_defaults(passes_on=True)

    tables = commands.add_parser("table", help="print a table").add_subparsers(
        title="tables", dest="table", required=True
    )
    does = "the parameters of every method, beside Table 2 of the paper"
    params = _command(tables, "params", _table_params, does, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    params.add_argument("--env", default="MT50", help="a Meta-World task or set")
    does = "success rates of all methods on all benchmarks, from run folders"
    results = _command(tables, "results", _table_results, does)
    results.add_argument("--format", default="markdown", help="markdown (default), latex or csv")
    does = "success beside parameters on one task set, as in Table 2 of the paper"
    capacity = _command(tables, "capacity", _table_capacity, does)
    capacity.add_argument("--env", default="MT50-Fixed", help="task set (default: MT50-Fixed, the paper's)")
    capacity.add_argument("--format", default="markdown", help="markdown, latex or csv (default: markdown)")

    plots = commands.add_parser("plot", help="draw a figure").add_subparsers(
        title="figures", dest="figure", required=True
    )
    does = "success against environment steps, as in Figures 5 and 6 of the paper, from run folders"
    curves = _command(plots, "curves", _plot_curves, does)
    curves.add_argument("--env", help="task set (default: each that there is)")
    curves.add_argument("--by-task", action="store_true", help="a panel for each task instead of their mean")
    does = "methods compared over seeds: performance profiles and probabilities of improvement"
    profiles = _command(plots, "profiles", _plot_profiles, does)
    profiles.add_argument("--env", help="task set (default: each that there is)")
    for command in (curves, profiles):
        command.add_argument(
            "--out", type=Path, default=Path("figures"), help="folder for the figures (default: figures)"
        )
    for command in (results, capacity, curves, profiles):
        command.add_argument(
            "logs", type=Path, nargs="?", default=Path("logs"), help="folder of the runs (default: logs)"
        )

    does = "what the routing of a run learned, as in Figures 3 and 4 of the paper; with --video as a film"
    routing = _command(plots, "routing", _plot_routing, does)
    routing.add_argument(
        "--steps", type=int, help="steps of each task to average over (default: 200, as in the report)"
    )
    routing.add_argument("--seed", type=int, help="of the goals (default: that of the training, as in the report)")
    routing.add_argument("--best", action="store_true", help="the best model of training instead of the last")
    routing.add_argument("--video", action="store_true", help="film an episode of each task with its routing beside it")
    routing.add_argument("--out", type=Path, help="folder for the figures (default: figures in the run folder)")

    evaluate = _command(commands, "evaluate", _evaluate, "evaluate the policies of runs, for the tables")
    evaluate.add_argument("runs", type=Path, nargs="+", help="run folders, for instance logs/mt_sac/MT3_1")
    protocols = "metaworld (each of 50 goals once, up to 500 steps) or paper (100 episodes, envs as in the training)"
    evaluate.add_argument("--protocol", help=protocols)
    evaluate.add_argument("--episodes", type=int, help="of each task (default: the protocol's, or 50)")
    evaluate.add_argument("--seed", type=int, help="of the goals (default: that of the training: the same goals)")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the best model of training instead of the last")
    which.add_argument("--minutes", type=float, help="the model after so many minutes, of train --minutes")

    does = "the mixture of a run's tasks that does best in a task that it never saw, found by playing"
    mixture = _command(commands, "mixture", _mixture, does)
    mixture.add_argument("--task", required=True, help="the unseen one, for instance coffee-button-v3")
    mixture.add_argument("--episodes", type=int, default=10, help="that each mixture plays (default: 10)")
    mixture.add_argument("--trials", type=int, default=100, help="mixtures to try (default: 100)")
    mixture.add_argument("--seed", type=int, default=0, help="of the search and of the goals (default: 0)")
    mixture.add_argument("--best", action="store_true", help="the best model of training instead of the last")

    does = "all that is known of a run, or of several side by side, as one HTML file"
    report = _command(commands, "report", _report, does)
    report.add_argument("runs", type=Path, metavar="run", nargs="+", help="run folders, for instance logs/mt_sac/MT3_*")
    report.add_argument("--best", action="store_true", help="the routing of the best model instead of the last")
    report.add_argument("--video", action="store_true", help="with a video of each task")
    report.add_argument("--out", type=Path, help="the file (default: report.html in the folder that holds all of it)")

    export = _command(commands, "export", _export, "the policy of a run as one file that acts without this package")
    export.add_argument("--best", action="store_true", help="the best model of training instead of the last")
    export.add_argument(
        "--out", type=Path, help="the file, .onnx or .pt for TorchScript (default: policy.onnx in the run folder)"
    )
    hub = _command(commands, "hub", _hub, "a run as a folder for the Hugging Face hub, and its upload")
    hub.add_argument("--best", action="store_true", help="the best model of training instead of the last")
    hub.add_argument("--video", action="store_true", help="with a video of each task")
    hub.add_argument("--out", type=Path, help="the folder (default: hub in the run folder)")
    hub.add_argument("--upload", metavar="YOU/NAME", help="upload it, by the account of hf auth login")
    for command in (routing, mixture, export, hub):
        command.add_argument(
            "folder", type=Path, metavar="run", help="run folder, for instance logs/softmod_deep/MT3_1"
        )
    return parser


def _options_of(module: str) -> list[Parser]:
    """The parser of a module that reads its arguments itself; none without the packages that it needs."""
    try:
        return [import_module(f"sb3_softmod.{module}").options()]
    except (ConfigurationError, ModuleNotFoundError):
        return []


def _command(group: Any, name: str, run: Callable[[Any], None], does: str, **options: Any) -> Parser:
    command: Parser = group.add_parser(name, help=does, **options)
    command.set_defaults(run=run)
    return command


# What a command needs is imported when it runs, so that --help does not wait for torch.


def _demo(args: argparse.Namespace) -> None:
    from sb3_softmod.demo import run_demo
    from sb3_softmod.learner.acceleration import keep_memory

    keep_memory()
    run_demo(args.out, vector_steps=args.steps, n_eval_episodes=args.episodes, seed=args.seed)


def _pass_on(name: str, module: str, arguments: Sequence[str]) -> None:
    if name in ("train", "adapt"):
        from sb3_softmod.learner.acceleration import keep_memory

        keep_memory()
    getattr(import_module(f"sb3_softmod.{module}"), name)(arguments)


def _table_params(args: argparse.Namespace) -> None:
    from rich.console import Console

    from sb3_softmod.runs.parameters import parameter_table

    Console().print(parameter_table(args.env))


def _table_results(args: argparse.Namespace) -> None:
    from sb3_softmod.runs.results import results_table

    with _runs(args) as runs:
        print(results_table(runs, args.format))


def _table_capacity(args: argparse.Namespace) -> None:
    from sb3_softmod.runs.capacity import capacity_table

    with _runs(args) as runs:
        print(capacity_table(runs, full_name(args.env), args.format))


def _plot_curves(args: argparse.Namespace) -> None:
    from sb3_softmod.runs.curves import draw_curves

    check_folder(args.out)
    with _runs(args) as runs:
        names = [full_name(args.env)] if args.env else sorted({run.benchmark for run in runs if run.reports_success})
        if not names:
            raise SoftModError(f"No run in {args.logs} was evaluated, with tasks that report success.")
        stem = "curves-{}" + "-by-task" * args.by_task
        for name in names:
            with _without_others(names):
                figure = draw_curves(runs, name, by_task=args.by_task)
                print(*save_figure(figure, args.out / stem.format(name)), sep="\n")


def _plot_profiles(args: argparse.Namespace) -> None:
    from sb3_softmod.runs.profiles import finished_entries, improvements, profiles_figure
    from sb3_softmod.runs.results import collect

    check_folder(args.out)
    with _runs(args) as runs:
        scored = sorted({entry.benchmark for entry in collect(runs) if entry.is_scored})
        names = [full_name(args.env)] if args.env else scored
        if not names:
            raise SoftModError(f"No run in {args.logs} is finished and reports success.")
        for name in names:
            with _without_others(names):
                entries = finished_entries(runs, name)
                pairs = improvements(entries)
                figure = profiles_figure(entries, pairs, name)
                print(*save_figure(figure, args.out / f"profiles-{name}"), sep="\n")
                for pair in pairs:
                    seeds = " and ".join(str(len(entries[method].scores)) for method in (pair.first, pair.second))
                    bounds = pair.interval
                    spread = "too few for an interval" if bounds is None else "{:.2f} to {:.2f}".format(*bounds)
                    print(f"P({pair.first} > {pair.second}) = {pair.probability:.2f} ({spread}; {seeds} seeds)")


@contextmanager
def _without_others(names: Sequence[str]) -> Iterator[None]:
    """What is wrong with the runs of one of several task sets leaves the others out of it."""
    try:
        yield
    except ConfigurationError as error:
        if len(names) == 1:
            raise
        _complain([str(error)])


@contextmanager
def _runs(args: argparse.Namespace) -> Iterator[list[Run]]:
    """All that can be read below ``args.logs``; in the end, what cannot be is said."""
    from sb3_softmod.runs.run import find_runs

    runs, problems = find_runs(args.logs)
    yield runs
    _complain(problems)


def _plot_routing(args: argparse.Namespace) -> None:
    from sb3_softmod.evaluation.evaluate import make_evaluation_env
    from sb3_softmod.routing.figures import plot_routing
    from sb3_softmod.routing.routes import STEPS, routed_networks
    from sb3_softmod.routing.video import record_routing
    from sb3_softmod.runs.evaluation import env_options, load_model
    from sb3_softmod.runs.run import load_run

    run = load_run(args.folder)
    out = args.out or run.folder / "figures"
    check_folder(out)
    model = load_model(run, best=args.best)
    routed_networks(model)  # before the envs, which take a while
    seed, steps = run.goals_seed if args.seed is None else args.seed, STEPS if args.steps is None else args.steps
    options = {**env_options(run), "seed": seed}
    note = (
        f"{run.title} on {run.benchmark}, seed {run.manifest['seed']}, {'best' if args.best else 'last'} model: "
        f"{steps} steps of each task, {run.goals} of seed {seed}"
    )
    if args.video:
        options["render_mode"] = "rgb_array"
    with closing(make_evaluation_env(model, run.benchmark, options=options)) as env:
        files = plot_routing(model, env, out, steps=steps, note=note)
        if args.video:
            files += record_routing(model, env, out)
    print(*files, sep="\n")


def _evaluate(args: argparse.Namespace) -> None:
    from sb3_softmod.runs.evaluation import evaluate_runs

    results, problems = evaluate_runs(
        args.runs,
        protocol=args.protocol,
        n_eval_episodes=args.episodes,
        seed=args.seed,
        best=args.best,
        minutes=args.minutes,
        progress_bar=sys.stderr.isatty(),
    )
    for folder, found in results.items():
        print(f"{folder}\n{found}\n")
    if problems and not results:
        raise SoftModError("\n".join(problems))
    _complain(problems)


def _mixture(args: argparse.Namespace) -> None:
    from sb3_softmod.evaluation.mixture_search import search_mixture
    from sb3_softmod.runs.evaluation import env_options, load_model
    from sb3_softmod.runs.run import load_run

    run = load_run(args.folder)
    model = load_model(run, best=args.best)
    out = run.folder / f"mixture_{args.task}.json"
    check_file(out)
    found = search_mixture(
        model,
        args.task,
        episodes=args.episodes,
        trials=args.trials,
        seed=args.seed,
        env_kwargs={**env_options(run), "goals": "random"},  # also for a policy that was trained on one of each task
        progress_bar=sys.stderr.isatty(),
    )
    found.to_json(out)
    print(found, out, sep="\n")


def _report(args: argparse.Namespace) -> None:
    from sb3_softmod.report.write import write_report

    out, problems = write_report(args.runs, args.out, best=args.best, video=args.video)
    print(out)
    _complain(problems)


def _export(args: argparse.Namespace) -> None:
    from sb3_softmod.deployment.export import check_export
    from sb3_softmod.runs.evaluation import load_model
    from sb3_softmod.runs.run import load_run

    run = load_run(args.folder)
    out = check_export(args.out or run.folder / "policy.onnx", None)
    print(load_model(run, best=args.best).export(out))


def _hub(args: argparse.Namespace) -> None:
    from sb3_softmod.hub import check_repository, upload, write_hub_folder

    out = args.out or args.folder / "hub"
    if args.upload is not None:
        check_repository(args.upload)
    print(*write_hub_folder(args.folder, out, best=args.best, video=args.video), sep="\n")
    if args.upload is not None:
        print(upload(out, args.upload))


def _complain(problems: Sequence[str]) -> None:
    """Say what could not be read; the rest was."""
    for problem in problems:
        print(f"sb3-softmod: left out: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
