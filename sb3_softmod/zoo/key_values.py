"""RL Zoo's ``key:value`` options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rl_zoo3.utils import StoreDict

from sb3_softmod.common.errors import ConfigurationError


def reason_of(error: Exception) -> str:
    """What is wrong with Python code that was a string, which has no file and line to name."""
    return str(error.msg if isinstance(error, SyntaxError) else error)


class KeyValues(StoreDict):
    """RL Zoo's, with an error that says what is wrong."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        before = getattr(namespace, self.dest, None) or {}
        try:
            super().__call__(parser, namespace, values, option_string)
        except Exception as error:  # whatever the evaluation of Python code raises
            raise ConfigurationError(
                f"{option_string} {' '.join(values)}: {reason_of(error)}. Write key:value with a value in Python, "
                'strings in quotes: goals:"\'fixed\'" policy_kwargs:"dict(module_dim=64)"'
            ) from error
        found = getattr(namespace, self.dest)
        if twice := [name for name in found if name in before]:
            raise ConfigurationError(f"{option_string} gives {twice[0]!r} twice.")
        setattr(namespace, self.dest, {**before, **found})


def key_values(option: str, values: Sequence[str]) -> dict[str, Any]:
    """What the values of such an option say, for a parser that does not wait for RL Zoo.

    :raises ConfigurationError: for a value that is no Python, or a name that is there twice
    """
    names = [text.partition(":")[0] for text in values]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigurationError(f"{option} gives {twice[0]!r} twice.")
    found = argparse.Namespace()
    KeyValues([option], "values", "+")(argparse.ArgumentParser(), found, values, option)
    return dict(found.values)
