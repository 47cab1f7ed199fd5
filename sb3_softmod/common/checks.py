"""Arguments that are not what they should be, in the same words everywhere. Nothing here imports torch or SB3."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sb3_softmod.common.errors import ConfigurationError, nearest


def require_integer(name: str, value: Any, at_least: float = -math.inf, at_most: int | None = None) -> None:
    """Refuse what is no integer, or not in a range; numpy's integers are integers, booleans are not.

    :raises ConfigurationError: naming the argument, the range and the value
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigurationError(f"{name} must be an integer, not {value!r}.")
    if at_most is not None and not at_least <= value <= at_most:
        raise ConfigurationError(f"{name} must be from {at_least} to {at_most}, not {value}.")
    if value < at_least:
        raise ConfigurationError(f"{name} must be at least {at_least}, not {value}.")


def require_number(
    name: str, value: Any, at_least: float = -math.inf, at_most: float = math.inf, *, above: float | None = None
) -> None:
    """Refuse what is no finite number in a range.

    :param above: the number must be larger than this
    :raises ConfigurationError: naming the argument, the range and the value
    """
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_real or (not isinstance(value, int) and not math.isfinite(value)):
        raise ConfigurationError(f"{name} must be a finite number, not {value!r}.")
    if above is not None and not value > above:
        raise ConfigurationError(f"{name} must be {'positive' if above == 0 else f'above {above:g}'}, not {value!r}.")
    if not at_least <= value <= at_most:
        limits = f"at least {at_least:g}" if at_most == math.inf else f"from {at_least:g} to {at_most:g}"
        raise ConfigurationError(f"{name} must be {limits}, not {value!r}.")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    :raises ConfigurationError: naming the argument and the value
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}.")


def require_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Refuse an unknown name.

    :raises ConfigurationError: with the nearest known
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise ConfigurationError(f"Unknown {name} {value!r}: {nearest(str(value), known)}")


def require_names(name: str, value: object) -> None:
    """Refuse what does not map names to something.

    :raises ConfigurationError: naming the argument and the value
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(f"{name} must map names to values (a dict), not {value!r}.")


def require_seed(seed: Any) -> None:
    """Refuse what numpy's and torch's generators do not both take; None is for a seed that is drawn.

    :raises ConfigurationError: naming the value
    """
    if seed is not None:
        require_integer("seed", seed, 0, 2**32 - 1)


def arguments_of(cls: type) -> list[str]:
    """The names of a class's arguments, those among them that it hands on to the classes that it extends."""
    names: list[str] = []
    for each in cls.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
            names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))
