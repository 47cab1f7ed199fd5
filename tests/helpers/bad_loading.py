"""Arguments that do not go with a good file, and options of noise, buffers and names, for :mod:`bad_inputs`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from bad_inputs import BadInput, later
from bad_values import SMALL, M, model, point_mass
from gymnasium import spaces
from point_mass import PointMass, make_point_mass_env
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecEnv, TaskEnv, make_multitask_env
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback

FILE = "model.zip"


def every() -> list[BadInput]:
    """All of them."""
    return [*arguments_of_load(), *options(), *names()]


def save(folder: Path) -> None:
    """A good file, and a checkpoint."""
    model().save(folder / FILE)


def checkpoint(folder: Path) -> None:
    """A good checkpoint."""
    MultiTaskSAC("MTMlpPolicy", point_mass(), **SMALL).learn(2 * M, CheckpointCallback(folder, save_freq=1))


class Wide(PointMass):
    """A point with an action more."""

    def __init__(self, goal: int) -> None:
        super().__init__(goal)
        self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)


def _task(env: type[PointMass], width: int, task: int) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(env(task), 20), task, [f"corner-{i}" for i in range(M)], width=width)


def others(env: type[PointMass] = PointMass, width: int = 2) -> VecEnv:
    """Tasks of the same number with other spaces."""
    return DummyVecEnv([partial(_task, env, width, task) for task in range(M)])


def arguments_of_load() -> Iterator[BadInput]:
    """What does not go with the file of :func:`.bad_values.model`."""

    def load(folder: Path, **kwargs: Any) -> Any:
        return MultiTaskSAC.load(folder / FILE, **{"env": point_mass(), **kwargs})

    def load_safely(folder: Path, **kwargs: Any) -> Any:
        return load(folder, **{"policy": "MTMlpPolicy", "safe": True, **kwargs})

    def resume(folder: Path, **kwargs: Any) -> Any:
        return MultiTaskSAC.resume(folder, **{"env": point_mass(), **kwargs})

    for name, nearest in (
        ("gama", "'gamma'"),
        ("lerning_rate", "'learning_rate'"),
        ("buffersize", "'buffer_size'"),
        ("entcoef", "'ent_coef'"),
        ("n_step", "'n_steps'"),
        ("optimize_memory_usage", "'optimize_memory_usage'"),
    ):
        for how, does in (("load", load), ("load(safe=True)", load_safely), ("resume", resume)):
            given: dict[str, Any] = {name: 1}
            yield BadInput("loading", f"{how} of {name}", partial(does, **given), nearest, save)
    for name in ("safe", "policy"):
        given = {name: "MTMlpPolicy"}
        yield BadInput("loading", f"resume of {name}", partial(resume, **given), name, save)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("a custom object that is no dictionary", dict(custom_objects=[1]), "custom_objects"),
        ("other policy_kwargs", dict(policy_kwargs=dict(net_arch=[5])), "net_arch"),
        ("more policy_kwargs", dict(policy_kwargs=dict(net_arch=[4], n_critics=3)), "n_critics"),
        ("fewer policy_kwargs", dict(policy_kwargs={}), "net_arch"),
        ("policy_kwargs that are none", dict(policy_kwargs=3), "policy_kwargs"),
        ("other policy_kwargs of the file", dict(custom_objects={"policy_kwargs": dict(net_arch=[5])}), "shape"),
        ("gSDE", dict(use_sde=True), "use_sde"),
        ("observations that are wider", dict(env=others(width=5)), "observation space"),
        ("frame stacks", dict(env=VecFrameStack(make_point_mass_env(M), 2)), "observation space"),
        ("other actions", dict(env=others(Wide)), "action space"),
        ("more tasks", dict(env=make_point_mass_env(M + 1)), "tasks"),
        ("another number of tasks by hand", dict(num_tasks=M + 1), "tasks"),
        ("SB3's normalisation", dict(env=VecNormalize(make_point_mass_env(M))), "MultiTaskVecNormalize"),
        ("a batch that the tasks do not divide", dict(batch_size=2 * M + 1), "batch_size"),
        ("a buffer without room", dict(buffer_size=1), "buffer_size"),
        ("a discount above 1", dict(gamma=3), "gamma"),
        ("a temperature too few", dict(ent_coef=[0.1] * (M - 1)), "ent_coef"),
        ("a temperature below 0", dict(custom_objects={"ent_coef": -1}), "ent_coef"),
        ("a word for a temperature", dict(ent_coef="outo"), "ent_coef"),
        ("no temperature", dict(ent_coef=None), "ent_coef"),
        ("a window of no episodes", dict(stats_window_size=0), "stats_window_size"),
        ("noise of another shape", dict(action_noise=NormalActionNoise(np.zeros(3), np.ones(3))), "action_noise"),
        ("a key of another buffer", dict(replay_buffer_kwargs=dict(n_steps=3)), "n_steps"),
        ("a device that is none", dict(device="abacus"), "device"),
    ]
    for text, kwargs, mentions in wrong:
        yield BadInput("loading", f"load with {text}", partial(load, **kwargs), mentions, save)
        if "custom_objects" not in kwargs and text not in ("frame stacks",):
            yield BadInput("loading", f"load(safe=True) with {text}", partial(load_safely, **kwargs), "", save)
    safely: list[tuple[str, dict[str, Any], str]] = [
        ("another policy", dict(policy="PaCoPolicy"), FILE),
        ("custom objects", dict(custom_objects={"gamma": 0.5}), "custom_objects"),
        ("frame stacks", dict(env=VecFrameStack(make_point_mass_env(M), 2)), "shape"),
    ]
    for text, kwargs, mentions in safely:
        yield BadInput("loading", f"load(safe=True) with {text}", partial(load_safely, **kwargs), mentions, save)
    yield BadInput("loading", "resume with a smaller buffer", partial(resume, buffer_size=20), "buffer", checkpoint)
    yield BadInput("loading", "resume with more tasks", partial(resume, env=make_point_mass_env(3)), "", checkpoint)


class Keyed(MultiTaskReplayBuffer):
    """Takes a keyword more."""

    def __init__(self, *args: Any, share: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def options() -> Iterator[BadInput]:
    """Of replay buffers, optimizers and noise."""

    def made(**kwargs: Any) -> Any:
        return MultiTaskSAC("MTMlpPolicy", point_mass(), **{**SMALL, **kwargs})

    of_the_model = ("buffer_size", "observation_space", "action_space", "device", "n_envs", "optimize_memory_usage")
    for cls in (None, Keyed, ReplayBuffer, NStepReplayBuffer):
        name = "no class" if cls is None else cls.__name__
        ours = cls in (None, Keyed)
        for key in (
            *of_the_model,
            *(("num_tasks", "storage_device", "n_steps", "gamma") if ours else ()),
            "handle_timeouts",
            "shar",
        ):
            run = later(made, replay_buffer_class=cls, replay_buffer_kwargs={key: 1})
            yield BadInput("parts", f"{name}: {key}", run, key)
    for buffer in (None, Keyed):
        kwargs = dict(replay_buffer_class=buffer, replay_buffer_kwargs=dict(handle_timeout_termination=False))
        yield BadInput("parts", f"timeouts of {buffer}", later(made, **kwargs), "handle_timeout_termination")
    for other in (DictReplayBuffer, HerReplayBuffer):
        run = later(made, replay_buffer_class=other)
        yield BadInput("parts", other.__name__, run, other.__name__)
    for optimizer in (th.optim.LBFGS, th.optim.SparseAdam):
        run = later(made, policy_kwargs=dict(net_arch=[4], optimizer_class=optimizer))
        yield BadInput("parts", f"optimizer {optimizer.__name__}", run, optimizer.__name__)
    for shape in ((), (1,), (3,), (1, 2), (M, 2)):
        noise = NormalActionNoise(np.zeros(shape), np.ones(shape))
        for each in (noise, VectorizedActionNoise(noise, M)):
            text = f"{type(each).__name__} of shape {shape}"
            yield BadInput("parts", text, later(made, action_noise=each), "action_noise")


def names() -> Iterator[BadInput]:
    """Names of tasks that log files cannot hold."""
    for text, name in {
        "a comma": "swing, up",
        "a double quote": 'the "far" one',
        "a line break": "far\naway",
        "a carriage return": "far\raway",
        "a tabulator": "far\taway",
        "a line separator": "far\u2028away",
        "a form feed": "far\faway",
        "a null character": "far\0away",
        "no letter": "",
    }.items():
        yield BadInput("names", f"make_multitask_env: {text}", later(_multitask, name), repr(name))
        yield BadInput("names", f"MultiTaskVecEnv: {text}", later(_by_makers, name), repr(name))
        yield BadInput("names", f"an env of one's own: {text}", later(_by_hand, name), repr(name))


def _multitask(name: str) -> Any:
    return make_multitask_env({name: partial(PointMass, 0), "near": partial(PointMass, 1)}, n_workers=0)


def _named(names: list[str], task: int, copy: int) -> TaskEnv:
    return TaskEnv(gym.wrappers.TimeLimit(PointMass(task), 20), task, names)


def _by_makers(name: str) -> Any:
    return MultiTaskVecEnv([partial(_named, [name, "near"], task) for task in range(2)], n_workers=0)


def _by_hand(name: str) -> Any:
    env = make_point_mass_env(2)
    env.set_attr("task_names", (name, "near"))
    return MultiTaskSAC("MTMlpPolicy", env, **SMALL)
