"""All that the future of a training run depends on, besides what SB3 saves and the replay buffer."""

from __future__ import annotations

import pickle
import random
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from inspect import signature
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback

from sb3_softmod.common.errors import SoftModError
from sb3_softmod.envs.progress import progress_of, set_progress_of

#: What SB3 gives every callback anew.
_GIVEN = ("model", "logger", "locals", "globals", "parent", "training_env")
#: What a callback's attribute may be, or consist of, to be saved.
_PLAIN = (bool, int, float, str, bytes, type(None), np.generic, np.ndarray)


def training_state(
    model: SAC, callback: BaseCallback, learning: Mapping[str, Any], settings: Mapping[BaseCallback, dict[str, Any]]
) -> dict[str, Any]:
    """The state between two steps of the envs, for :func:`restore` and :func:`go_on`.

    :param callback: of the training
    :param learning: how far the learner is
    :param settings: of the callbacks, see :func:`settings_of`
    """
    try:
        assert model.env is not None
        envs, obstacle = progress_of(model.env), ""
    except SoftModError as error:
        envs, obstacle = None, str(error)
    names = ("name_to_value", "name_to_count", "name_to_excluded")
    return {
        "envs": envs,
        "obstacle": obstacle,
        **learning,
        "logger": {name: dict(getattr(model.logger, name)) for name in names},
        "callbacks": [(type(each).__name__, _progress(each, settings.get(each, {}))) for each in _with_state(callback)],
        "action_space": model.action_space.np_random.bit_generator.state,
        "generators": _generators(),
        "conditions": _conditions(model),
    }


def restore(model: SAC, state: Mapping[str, Any]) -> None:
    """Let the envs and the generators of a model be as they were; warn where that cannot be exact.

    :param model: as loaded, with its envs and its replay buffer
    """
    _restore_envs(model, state)
    for what, before in state["conditions"].items():
        now = _conditions(model)[what]
        if now != before:
            warnings.warn(
                f"The run goes on, but not bit for bit as it would have without a break: {what} was {before}, and is "
                f"{now} now.",
                stacklevel=4,
            )
    model.action_space.np_random.bit_generator.state = state["action_space"]
    _set_generators(state["generators"])  # last: whatever came before may have drawn from them


def _restore_envs(model: SAC, state: Mapping[str, Any]) -> None:
    assert model.env is not None
    why = state["obstacle"]
    if not why:
        try:
            model._last_obs, strayed = set_progress_of(model.env, state["envs"])  # which warns of envs that strayed
            if (scale := getattr(model, "reward_scale", None)) is not None:
                scale.begin(strayed)
            model._last_episode_starts = np.zeros(model.env.num_envs, bool)
            if model._vec_normalize_env is not None:
                model._last_original_obs = model._vec_normalize_env.get_original_obs()
            return
        except SoftModError as error:
            why = str(error)
    model._last_obs = None
    warnings.warn(
        f"The run goes on with new episodes in all envs, not in the middle of the old ones. {why}", stacklevel=5
    )


def go_on(model: SAC, callback: BaseCallback, state: Mapping[str, Any]) -> None:
    """Let the logger and the callbacks of a resumed training be as they were; warn of callbacks that are new.

    :param callback: of the training, which is about to begin
    :param state: of the checkpoint
    """
    for name, values in state["logger"].items():
        getattr(model.logger, name).update(values)
    saved: dict[str, list[Any]] = {}
    for name, progress in state["callbacks"]:
        saved.setdefault(name, []).append(progress)
    new = []
    for each in _with_state(callback):
        name = type(each).__name__
        if saved.get(name):
            _set_progress(each, saved[name].pop(0))  # of several of one class, in their order
        else:
            new.append(name)
    if new:
        warnings.warn(f"Callbacks that the checkpoint does not know begin anew: {', '.join(new)}.", stacklevel=4)


def _with_state(callback: BaseCallback) -> Iterator[BaseCallback]:
    for each in callbacks_of(callback):
        nobodys = isinstance(each, ConvertCallback) and each.callback is None  # what SB3 makes of no callback
        if not nobodys and not isinstance(each, ProgressBarCallback):
            yield each


def callbacks_of(callback: Any) -> Iterator[BaseCallback]:
    """A callback and those that it calls, in an order that depends on nothing else.

    :param callback: what ``learn`` takes
    """
    if isinstance(callback, list):
        for each in callback:
            yield from callbacks_of(each)
    if not isinstance(callback, BaseCallback):
        return
    if not isinstance(callback, CallbackList):
        yield callback
    for name in ("callbacks", "callback", "callback_on_new_best"):
        yield from callbacks_of(getattr(callback, name, None))


def settings_of(callback: BaseCallback) -> dict[str, Any]:
    """What a callback was made with, as far as it is plain data: a resumed training may have it otherwise.

    :param callback: before it is first called
    """
    classes = [cls for cls in type(callback).__mro__ if issubclass(cls, BaseCallback)]
    arguments = {name for cls in classes for name in signature(cls).parameters}
    return {name: value for name, value in plain_attributes(callback).items() if name in arguments}


def _progress(callback: BaseCallback, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What its ``progress()`` says, if it has one, else its attributes that are plain data, without its settings."""
    if hasattr(type(callback), "set_progress"):
        return callback.progress()  # type: ignore[attr-defined]
    attributes = plain_attributes(callback)
    unchanged = {name for name in settings if pickle.dumps(attributes.get(name)) == pickle.dumps(settings[name])}
    return {name: value for name, value in attributes.items() if name not in unchanged}


def _set_progress(callback: BaseCallback, progress: Mapping[str, Any]) -> None:
    if hasattr(type(callback), "set_progress"):
        callback.set_progress(progress)  # type: ignore[attr-defined]
    else:
        vars(callback).update(deepcopy(dict(progress)))


def plain_attributes(callback: BaseCallback) -> dict[str, Any]:
    """A copy of the attributes of a callback that are plain data: numbers, text, arrays, and collections of them."""
    return {name: deepcopy(value) for name, value in vars(callback).items() if name not in _GIVEN and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple, set, deque)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _generators() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
    }


def _set_generators(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    for device, cuda in enumerate(states["cuda"][: th.cuda.device_count()]):  # there may be fewer GPUs now
        th.cuda.set_rng_state(cuda, device)


def _conditions(model: SAC) -> dict[str, Any]:
    """What sums and products are rounded by, by the names that a user has for them."""
    return {
        "the device": str(model.device),
        "the number of torch's threads (torch.set_num_threads)": th.get_num_threads(),
        "torch's version": th.__version__,
    }
