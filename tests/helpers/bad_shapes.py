"""Observations, actions, transitions and spaces of shapes and types that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from bad_inputs import BadInput, later
from bad_values import M, Thing, bad_values, model, point_mass
from gymnasium import spaces
from point_mass import PointMass

from sb3_softmod import MultiTaskReplayBuffer


class Graph(PointMass):
    """Sends graphs, which no Box can hold."""

    def __init__(self) -> None:
        super().__init__(0)
        self.observation_space = spaces.Graph(spaces.Box(-1, 1, (2,)), None)  # type: ignore[assignment]


def shapes() -> Iterator[BadInput]:
    width = 2 + M
    for text, observation in (
        ("short", np.zeros(width - 1, np.float32)),
        ("long", np.zeros(width + 1, np.float32)),
        ("a batch of short ones", np.zeros((3, width - 1), np.float32)),
        ("of three axes", np.zeros((1, 3, width), np.float32)),
        ("a number", np.float32(3)),
        ("empty", np.zeros(0, np.float32)),
        ("of words", np.array(["a"] * width)),
        ("of objects", np.array([Thing()] * width)),
        ("complex", np.zeros(width, complex)),
        ("of lists that differ in length", [[1, 2], [3]]),
        ("None", None),
        ("a dictionary", {"observation": np.zeros(width)}),
        ("what reset of gymnasium returns", (np.zeros(width, np.float32), {})),
        ("of dates", np.zeros(width, "datetime64[s]")),
    ):
        yield BadInput("shapes", f"predict: an observation {text}", later(model().predict, observation), "")
    for text, actions in (
        ("short", np.zeros((M, 1), np.float32)),
        ("for another number of envs", np.zeros((M + 1, 2), np.float32)),
        ("flat", np.zeros(2 * M, np.float32)),
        ("complex", np.zeros((M, 2), complex)),
        ("of words", np.full((M, 2), "a")),
        ("of objects", np.full((M, 2), Thing())),
        ("with NaN", np.full((M, 2), np.nan, np.float32)),
        ("with infinity", np.full((M, 2), np.inf, np.float32)),
        ("of lists that differ in length", [[1, 2], [3]]),
        ("None", None),
        ("a number", 0.0),
    ):

        def step(_: Path, actions: Any = actions) -> None:
            point_mass().reset()
            point_mass().step(actions)

        yield BadInput("shapes", f"step: actions {text}", step, "action")

    one_hot = np.eye(M, dtype=np.float32)
    obs = np.concatenate([np.zeros((M, 2), np.float32), one_hot], 1)
    good: dict[str, Any] = dict(
        obs=obs,
        next_obs=obs,
        action=np.zeros((M, 2), np.float32),
        reward=np.zeros(M, np.float32),
        done=np.zeros(M, bool),
        infos=[{} for _ in range(M)],
    )
    for name, value in good.items():
        worse = {"short": value[:-1], "of another shape": np.zeros((3, 7, 2))} if name != "infos" else {}
        for text, bad in worse.items():
            yield BadInput(
                "shapes",
                f"add: {name} {text}",
                later(_buffer().add, **{**good, name: bad}),
                name,
            )
    for text, tasks in (
        ("of no task", np.zeros((M, M))),
        ("of two tasks", np.ones((M, M))),
        ("of half a task", np.full((M, M), 0.5)),
        ("with NaN for a task", np.full((M, M), np.nan)),
    ):
        bad = np.concatenate([obs[:, :2], tasks.astype(np.float32)], 1)
        yield BadInput("shapes", f"add: obs {text}", later(_buffer().add, **{**good, "obs": bad}), "one-hot")
    yield from bad_values(
        "shapes",
        "MultiTaskReplayBuffer",
        _buffer,
        {
            "buffer_size": "size",
            "num_tasks": "size",
            "observation_space": "anything else",
            "action_space": "anything else",
            "n_envs": "count",
        },
        {"num_tasks": "task", "observation_space": "observation space", "action_space": "actions"},
    )
    for batch_size in ("ten", 1.5, -1, 0, 3, None, True, math.nan):
        yield BadInput("shapes", f"a batch of {batch_size}", later(_buffer().sample, batch_size), "batch_size")
    for text, change in (
        ("nothing", lambda p: p.clear()),
        ("another name", lambda p: p.update(nobody={})),
        ("no critics' optimizer", lambda p: p.pop("critic.optimizer")),
        ("a word for a network", lambda p: p.update(policy="ten")),
        ("a network without a layer", lambda p: p["policy"].popitem()),
        ("a network with one more", lambda p: p["policy"].update(more=th.zeros(1))),
        ("words for tensors", lambda p: p["policy"].update(dict.fromkeys(p["policy"], "ten"))),
        ("other shapes", lambda p: p["policy"].update({k: th.zeros(7, 7) for k in p["policy"]})),
        ("an optimizer without state", lambda p: p.update({"actor.optimizer": {}})),
        ("an optimizer of other parameters", lambda p: p["actor.optimizer"]["param_groups"][0]["params"].pop()),
    ):

        def set_parameters(_: Path, change: Callable[[Any], Any] = change) -> None:
            parameters = {name: dict(state) for name, state in model().get_parameters().items()}
            change(parameters)
            model().set_parameters(parameters)

        yield BadInput("shapes", f"parameters: {text}", set_parameters, "arameters")


def _buffer(**kwargs: Any) -> MultiTaskReplayBuffer:
    env = point_mass()
    arguments: dict[str, Any] = dict(
        buffer_size=10,
        observation_space=env.observation_space,
        action_space=env.action_space,
        num_tasks=M,
        n_envs=M,
        device="cpu",
    )
    return MultiTaskReplayBuffer(**{**arguments, **kwargs})
