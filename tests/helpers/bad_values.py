"""Values that an argument must not take, and small envs and models to pass them to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from bad_inputs import BadInput, later
from point_mass import make_task

from sb3_softmod import MultiTaskSAC, MultiTaskVecEnv, TaskEnv

M = 2
SMALL: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), buffer_size=50, batch_size=4, device="cpu")


class Thing:
    """What nobody expects."""

    def __repr__(self) -> str:
        return "a thing"


JUNK: dict[str, Any] = {
    "None": None,
    "True": True,
    "a word": "ten",
    "no word": "",
    "minus one": -1,
    "zero": 0,
    "one and a half": 1.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "a huge number": 10**30,
    "an empty list": [],
    "a list": [1],
    "an empty dictionary": {},
    "bytes": b"x",
    "a thing": Thing(),
    "a complex number": 1j,
    "an array": np.arange(3),
}

#: What junk each kind of argument takes.
_NUMBERS = {"zero", "one and a half", "a huge number"}
KINDS: dict[str, set[str]] = {
    "count": {"a huge number"},
    "size": set(),
    "count or None": {"a huge number", "None"},
    "count from 0 or None": {"a huge number", "None", "zero"},
    "count from -1": {"a huge number", "zero", "minus one"},
    "share": {"zero"},
    "number from 0": _NUMBERS,
    "positive": _NUMBERS - {"zero"},
    "positive or infinite": (_NUMBERS - {"zero"}) | {"infinity"},
    "positive or None": (_NUMBERS - {"zero"}) | {"None"},
    "flag": {"True"},
    "name": set(),
    "name or None": {"None"},
    "mapping": {"an empty dictionary"},
    "mapping or None": {"an empty dictionary", "None"},
    "seed": {"zero", "None"},
    "widths": {"an empty list", "a list"},
    "some widths": {"a list"},
    "index": {"zero"},
    "anything else": set(),
    "nothing else": {"None"},
}


def bad_values(
    family: str, of: str, call: Callable[..., Any], arguments: dict[str, str], names: dict[str, str] | None = None
) -> Iterator[BadInput]:
    """A case for each argument and each junk that it must not take.

    :param of: what is called
    :param call: takes the argument by name
    :param arguments: to their kinds
    :param names: what the error calls an argument, if it is not its name
    """
    for argument, kind in arguments.items():
        for what, value in JUNK.items():
            if what not in KINDS[kind]:
                name = (names or {}).get(argument, argument)
                yield BadInput(family, f"{of}: {argument} is {what}", later(call, **{argument: value}), name)


@cache
def point_mass() -> MultiTaskVecEnv:
    return MultiTaskVecEnv([partial(_make, task) for task in range(M)], n_workers=0)


def _make(task: int, copy: int) -> TaskEnv:
    return make_task(task, M)


@cache
def model() -> MultiTaskSAC:
    return MultiTaskSAC("MTMlpPolicy", point_mass(), **SMALL, seed=0)
