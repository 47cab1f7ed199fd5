"""Reading command lines: what is wrong with one is an error of the package, which names what is near.

Nothing here imports torch or SB3.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from sb3_softmod.common.checks import require_choice, require_integer, require_seed
from sb3_softmod.common.errors import ConfigurationError, nearest

#: The smallest value of every option that counts something, whatever the command. The default of an option, which may
#: stand for "not given", is always allowed.
_ONE = ("episodes", "eval_episodes", "max_total_trials", "n_eval_envs", "n_evaluations", "n_timesteps", "n_trials")
_AT_LEAST = {
    **dict.fromkeys((*_ONE, "num_threads", "steps", "trial_id"), 1),  # RL Zoo takes trial 0 for "not given"
    **dict.fromkeys(("n_startup_trials", "verbose"), 0),
}
#: Where a negative value has a meaning of its own.
_NOT_ZERO = ("log_interval", "n_jobs")


class Parser(argparse.ArgumentParser):
    """argparse's, with errors for people.

    Every method that parses raises :class:`.ConfigurationError` for a command line that cannot work, a count that is
    too small among them; ``--help`` exits as ever. What a parser with ``set_defaults(passes_on=True)`` does not know
    is for another one.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """argparse's, also behind ``parse_args`` and for the commands of a parser."""
        found, rest = super().parse_known_args(args, namespace)
        if rest and "passes_on" not in found:
            options = [text for text in rest if text.startswith("-")]
            if not options:
                raise ConfigurationError(f"{self.prog} takes no {rest[0]!r} there (see {self.prog} --help).")
            known = [name for action in self._actions for name in action.option_strings]
            name = options[0].partition("=")[0]
            raise ConfigurationError(f"Unknown option {name!r} of {self.prog}: {nearest(name, known)}")
        for name, value in vars(found).items():
            if value is not None and value != self.get_default(name):
                _check_count(name, value)
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            require_choice("/".join(action.option_strings) or action.dest, value, action.choices)

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ConfigurationError(f"{message.removeprefix('argument ')} (see {self.prog} --help).")


def _check_count(name: str, value: Any) -> None:
    option = f"--{name.replace('_', '-')}"
    if name in _AT_LEAST:
        require_integer(option, value, _AT_LEAST[name])
    elif name in _NOT_ZERO and value == 0:
        raise ConfigurationError(f"{option} must not be 0.")
    elif name == "seed":
        require_seed(value)
