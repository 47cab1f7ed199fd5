"""The command line, ``sb3-softmod``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sb3_softmod.errors import SoftModError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the package end it with their message and status 2."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and "passes_on" not in args:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        args.run(rest if "passes_on" in args else args)
    except SoftModError as error:
        print(f"sb3-softmod: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sb3-softmod", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    demo = commands.add_parser(
        "demo",
        help="train on three Meta-World tasks for about 12 minutes and show what was learned",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the runs")
    demo.add_argument("--steps", type=int, default=40_000, help="steps of each environment, and gradient steps")
    demo.add_argument("--episodes", type=int, default=50, help="evaluation episodes of each task")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything")
    demo.set_defaults(run=_demo)

    for name, run, does in (
        ("train", _train, "train a method on a set of tasks, with RL Zoo"),
        ("enjoy", _enjoy, "play a trained policy, print success and return of each task, write a video"),
    ):
        command = commands.add_parser(name, help=does, add_help=False)  # their modules read the arguments
        command.set_defaults(run=run, passes_on=True)

    tables = commands.add_parser("table", help="print a table").add_subparsers(title="tables", required=True)
    params = tables.add_parser(
        "params",
        help="the parameters of every method, beside Table 2 of the paper",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    params.add_argument("--env", default="MT50", help="a Meta-World task or set, whose number of tasks counts")
    params.set_defaults(run=_table_params)
    return parser


# What a command needs is imported when it runs, so that --help does not wait for torch.


def _demo(args: argparse.Namespace) -> None:
    from sb3_softmod.demo import run_demo

    run_demo(args.out, vector_steps=args.steps, n_eval_episodes=args.episodes, seed=args.seed)


def _train(arguments: Sequence[str]) -> None:
    from sb3_softmod.zoo.train import train

    train(arguments)


def _enjoy(arguments: Sequence[str]) -> None:
    from sb3_softmod.zoo.enjoy import enjoy

    enjoy(arguments)


def _table_params(args: argparse.Namespace) -> None:
    from rich.console import Console

    from sb3_softmod.plots.tables import parameter_table

    Console().print(parameter_table(args.env))


if __name__ == "__main__":
    sys.exit(main())
