"""``sb3-softmod grid``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from sb3_softmod.common.command_line import Parser
from sb3_softmod.common.errors import ConfigurationError, SoftModError
from sb3_softmod.grid.driver import StoppedError, run_grid
from sb3_softmod.grid.file import DEFAULT_ROOT, Grid, grid_of_options, read_grid
from sb3_softmod.grid.folder import is_finished
from sb3_softmod.grid.local import LocalRunner
from sb3_softmod.grid.resources import Capacity
from sb3_softmod.grid.runner import Runner
from sb3_softmod.grid.status import FAILED, RUNNING, failures_of, table_of

#: Seconds between two drawings of the live view, which read files of every run.
REFRESH = 2.0

_EPILOG = """\
what --algos, --envs, --seeds and the options of train say, a file says too (docs/grid.md):

  algos: [softmod_deep, mt_sac]
  envs: [MT10-Conditioned]
  seeds: 0-9
  train: {conf-file: laptop, n-timesteps: 1000000}
  resources: {threads: 2}
  runs: table1

The same command again goes on where the grid was. Exit code: 0 if every run is finished, 2 if one failed.
"""


def grid(arguments: Sequence[str]) -> None:
    """Run the command.

    :param arguments: after "grid"
    :raises ConfigurationError: for bad input, before anything starts
    :raises SoftModError: naming the cells that failed
    """
    # By hand, because argparse would take the value of an option of train for it.
    file = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    args, rest = options().parse_known_args(arguments if file is None else arguments[1:])
    found = _grid_of(file, args, rest)
    if args.commands:
        print(*(cell.command() for cell in found.cells if not is_finished(cell.folder)), sep="\n")
        return
    if args.status:
        console = Console()
        if not console.is_terminal:  # a file has no width that columns must be cut to
            console.width = 160
        console.print(table_of(found.cells))
        if failures := failures_of(found.cells, 5):
            print(f"\n{failures}")
        return
    runner: Runner
    if args.ray is None:
        runner = LocalRunner(Capacity.of_this_machine)
    else:
        from sb3_softmod.grid.ray import RayRunner

        runner = RayRunner(args.ray, shared=found.shared)
    try:
        with _view(found) as report:
            failed = run_grid(found.cells, runner, report)
    except StoppedError as stopped:
        print(f"Ended by {stopped}; every run has its checkpoint. The same command goes on.", file=sys.stderr)
        sys.exit(128 + stopped.number)
    if failed:
        named = "\n".join(
            "\n".join([name, *(f"    {line}" for line in why.splitlines()[-5:])]) for name, why in failed.items()
        )
        raise SoftModError(f"{len(failed)} of {len(found.cells)} cells failed; the others are finished.\n{named}")
    print(f"All {len(found.cells)} cells are finished.")


def options() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="sb3-softmod grid",
        usage="sb3-softmod grid FILE [--ray ADDRESS | --status | --commands]\n"
        "       sb3-softmod grid --algos METHODS --envs TASKS --seeds 0-9 [...] [options of train]",
        description="Train every method on every task set with every seed: each cell an ordinary run of train.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(passes_on=True)
    parser.add_argument("--algos", nargs="+", help="methods")
    parser.add_argument("--envs", nargs="+", help="task sets")
    parser.add_argument("--seeds", help="for instance 0-9 or 0,3,7")
    parser.add_argument("--runs", type=Path, help=f"where the runs go (default: {DEFAULT_ROOT})")
    parser.add_argument("--threads", type=int, help="cores of a run (default: 1)")
    parser.add_argument("--memory", help="of a run, for instance 4G (default: estimated)")
    parser.add_argument("--gpus", type=float, help="of a run; a fraction shares one (default: 0, the CPU)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: the one of this machine")
    where.add_argument("--status", action="store_true", help="print how far every cell is, and run nothing")
    where.add_argument(
        "--commands", action="store_true", help="print a command line for each cell that is not finished"
    )
    return parser


def _grid_of(file: Path | None, args: argparse.Namespace, options: Sequence[str]) -> Grid:
    of_options = {name: getattr(args, name) for name in ("algos", "envs", "seeds", "runs", "threads", "memory", "gpus")}
    given = {name: value for name, value in of_options.items() if value is not None}
    if file is not None:
        if given or options:
            other = [*(f"--{name}" for name in given), *options][0]
            raise ConfigurationError(f"{file} says what the grid is: write {other} into it.")
        return read_grid(file)
    if missing := [name for name in ("algos", "envs", "seeds") if name not in given]:
        raise ConfigurationError(f"Name a file, or say --{missing[0]} too (see sb3-softmod grid --help).")
    resources: dict[str, Any] = {name: given[name] for name in ("threads", "memory", "gpus") if name in given}
    return grid_of_options(args.algos, args.envs, args.seeds, options, resources, given.get("runs", DEFAULT_ROOT))


@contextmanager
def _view(found: Grid) -> Iterator[Callable[[str], None]]:
    """What happens, as a table that is drawn again and again, or as lines where nobody looks at a terminal."""
    console = Console()
    if not console.is_terminal:
        yield lambda line: print(line, flush=True)
        return
    with Live(
        console=console,
        get_renderable=lambda: table_of(found.cells, (RUNNING, FAILED)),
        refresh_per_second=1 / REFRESH,
    ) as live:
        yield lambda line: live.console.print(line, markup=False, highlight=False)
