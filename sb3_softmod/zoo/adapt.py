"""``sb3-softmod adapt``: new tasks for the policy of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_softmod.common.command_line import Parser

_DESCRIPTION = """\
Let the policy of a run, or one that comes with the package, learn new tasks of Meta-World. Its old tasks act as before,
to the bit, and the envs are of the new tasks alone; with --tune all, the old tasks are played and learned too, unless
they are dropped. The run is written to logs/METHOD/TASKS+NEW_1/, as sb3-softmod train writes it.

  sb3-softmod adapt logs/softmod_deep/MT3_1 --tasks coffee-button-v3 --tune routing -n 200000
  sb3-softmod adapt --pretrained MT10 --tasks coffee-button-v3 handle-press-v3 --tune all -n 200000
  sb3-softmod adapt --resume logs/softmod_deep/MT3+coffee-button-v3_1
"""


def options() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="sb3-softmod adapt", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="run folder, for instance logs/softmod_deep/MT3_1")
    parser.add_argument("--pretrained", metavar="NAME", help="a model that comes with the package, instead of a run")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run of this command that was ended")
    parser.add_argument("--best", action="store_true", help="the best model of the run instead of the last")
    parser.add_argument("--tasks", nargs="+", action="extend", metavar="TASK", help="the new tasks")
    parser.add_argument("--tune", default="routing", help="what learns: routing (default), task, heads or all")
    parser.add_argument("--init", default="nearest", help="what new tasks begin as: nearest (default), mean or fresh")
    parser.add_argument("--drop-tasks", action="store_true", help="leave the old tasks behind")
    parser.add_argument("-n", "--n-timesteps", type=int, help="environment steps, over all tasks that are played")
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME:VALUE",
        help="arguments of MultiTaskSAC in place of those of the old one, for instance learning_rate:1e-3",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything but the goals (default: 0)")
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("logs"), help="for the run (default: logs)")
    parser.add_argument(
        "--eval-freq",
        type=int,
        help="environment steps between evaluations (default: 10,000 of each played task; -1: none)",
    )
    parser.add_argument("--eval-episodes", type=int, default=20, help="of each task, old ones too (default: 20)")
    parser.add_argument(
        "--save-freq",
        type=int,
        help="environment steps between checkpoints (default: 10,000 of each played task; 0: only where it is ended)",
    )
    parser.add_argument("--vec-env", choices=("subproc", "dummy"), default="subproc", help="as of sb3-softmod train")
    parser.add_argument("--device", default="auto", help="of PyTorch (default: auto)")
    parser.add_argument("--num-threads", type=int, help="of PyTorch")
    parser.add_argument("--verbose", type=int, default=1, help="0: print nothing (default: 1)")
    parser.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    return parser


def adapt(arguments: Sequence[str]) -> None:
    """Run the command.

    :param arguments: of the command line, after "adapt"
    :raises ConfigurationError: for bad input, before anything is learned
    """
    parser = options()
    args = parser.parse_args(arguments)
    sources = [name for name in ("run", "pretrained", "resume") if getattr(args, name) is not None]
    if len(sources) != 1:
        parser.error("name either a run, or --pretrained NAME, or --resume RUN")
    if args.resume is None:
        missing = [option for option, name in (("--tasks", "tasks"), ("-n", "n_timesteps")) if not getattr(args, name)]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)}")
    else:
        kept = ("resume", "device", "num_threads", "verbose", "progress", "vec_env")
        changed = [name for name in vars(args) if name not in kept and getattr(args, name) != parser.get_default(name)]
        if changed:
            parser.error(f"--resume takes no --{changed[0].replace('_', '-')}: a run goes on as it began")

    from sb3_softmod.zoo.adaptation import Adaptation  # here, so that --help does not wait for torch

    Adaptation.of(args, arguments).run()
