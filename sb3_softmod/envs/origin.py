"""What the next episode of an env depends on: the states of its random generators, and what its wrappers keep.

Nothing here imports torch or SB3: worker processes load it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_softmod.envs.tasks import TaskEnv

#: By the depth of a layer, and by what it is of that layer.
Origin = dict[tuple[int, str], Any]

_OWN = "progress"
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def origin_of(env: gym.Env) -> Origin:
    """What the next episode of an env begins from.

    That is the state of each random generator that a layer of the env (a wrapper, or the env in their middle) or one
    of its spaces has as an attribute, and what the ``progress()`` of a layer says, which ``set_progress()`` takes.
    """
    origin: Origin = {}
    for depth, layer in enumerate(_layers(env)):
        for name, generator in _generators(layer):
            origin[depth, name] = _state(generator)
        if _tells_progress(layer):
            origin[depth, _OWN] = layer.progress()
    return origin


def restore(env: gym.Env, origin: Origin) -> None:
    """Let the next episode of an env be what it was for the env that this origin is of."""
    layers = list(_layers(env))
    for (depth, name), state in origin.items():
        if name == _OWN:
            layers[depth].set_progress(state)
            continue
        with suppress(AttributeError):  # of a layer that makes it later; what follows tells whether that matters
            _set_state(attrgetter(name)(layers[depth]), state)


def settings_of(env: gym.Env) -> dict[str, Any]:
    """What must agree for the progress of one env to be taken up by another, by name."""
    layers = list(_layers(env))
    settings: dict[str, Any] = {
        "task": env.get_wrapper_attr("task_name"),
        "wrappers": " of ".join("TimeLimit" if _limits(layer) else type(layer).__name__ for layer in layers),
    }
    for layer in layers:
        if _limits(layer):
            limit = layer._max_episode_steps
            settings["max_episode_steps"] = min(limit, settings.get("max_episode_steps", limit))
        elif isinstance(layer, TaskEnv) or _tells_progress(layer):
            settings |= getattr(layer, "settings", {})
    return settings


def _limits(layer: Any) -> bool:
    """Whether a layer is a TimeLimit; not by its class, since RL Zoo replaces gymnasium's in the processes it is in."""
    return "_max_episode_steps" in vars(layer)


def _layers(env: gym.Env) -> Iterator[Any]:
    """An env's wrappers, from the outside, and the env in their middle."""
    layer = env
    while isinstance(layer, gym.Wrapper):
        yield layer
        layer = layer.env
    yield layer


def _tells_progress(layer: Any) -> bool:
    return hasattr(type(layer), "progress") and hasattr(type(layer), "set_progress")


def _generators(layer: Any) -> Iterator[tuple[str, Any]]:
    """The random generators of a layer, by the path of their attribute."""
    if not isinstance(layer, gym.Wrapper) and isinstance(layer.np_random, _GENERATORS):
        # gymnasium makes it when it is first asked for, which would be too late in the reset that draws from it.
        yield "np_random", layer.np_random
    for name, value in vars(layer).items():
        if isinstance(value, _GENERATORS) and name != "_np_random":
            yield name, value
        elif isinstance(value, gym.Space) and value._np_random is not None:
            yield f"{name}.np_random", value.np_random


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=False)


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
