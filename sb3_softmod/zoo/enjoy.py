"""``sb3-softmod enjoy``: plays a trained policy on its tasks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sb3_softmod.common.command_line import Parser

_DESCRIPTION = """\
Play a trained policy, on all of its tasks or on one, and print success and return of each. It plays with the goals of
its training, as Meta-World's benchmarks do; another --seed stands for other goals.

  sb3-softmod enjoy --algo softmod_deep --env MT3
  sb3-softmod enjoy --algo softmod_deep --env MT3 --load-best --task reach-v3 --video reach.mp4
  sb3-softmod enjoy --pretrained MT10
"""


def options() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="sb3-softmod enjoy", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", help="the method, as it was trained")
    parser.add_argument("--env", help="the tasks, as they were trained")
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs"), help="log folder (default: logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: the latest)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="the best model instead of the last")
    which.add_argument("--load-checkpoint", metavar="STEPS", help="the checkpoint of these steps")
    which.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    which.add_argument("--pretrained", metavar="NAME", help="a model that comes with the package, instead of a run")
    parser.add_argument("--task", help="play this task only")
    parser.add_argument("--episodes", type=int, default=5, help="episodes of each task (default: 5)")
    parser.add_argument("--video", type=Path, metavar="FILE.mp4", help="film the first episode of each task")
    parser.add_argument("--stochastic", action="store_true", help="act by samples instead of the mean")
    parser.add_argument("--seed", type=int, help="of goals and sampling (default: that of training)")
    parser.add_argument(
        "--env-kwargs",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY:VALUE",
        help="change what the envs were in training (horizon:500)",
    )
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules to import first, as in training"
    )
    parser.add_argument("--device", default="auto", help="of PyTorch (default: auto)")
    parser.add_argument(
        "--num-threads", type=int, default=1, help="of PyTorch (default: 1, the fastest for one observation at a time)"
    )
    return parser


def enjoy(arguments: Sequence[str]) -> None:
    """Run the command.

    :param arguments: of the command line, after "enjoy"
    :raises ConfigurationError: for bad input, before anything is played
    """
    parser = options()
    args = parser.parse_args(arguments)
    given = [f"--{name}" for name in ("algo", "env") if getattr(args, name) is not None]
    if args.pretrained is None and len(given) < 2:
        missing = [option for option in ("--algo", "--env") if option not in given]
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if args.pretrained is not None and given:
        parser.error(f"--pretrained says method and tasks: leave out {' and '.join(given)}")

    from sb3_softmod.zoo.playing import play  # here, so that --help does not wait for torch

    play(args)
