"""Envs that send what they are told to, whatever they declare. Worker processes import this module."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

DECLARED = spaces.Box(-1, 1, (4,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
GOOD = np.full(4, 0.5, np.float32)


class Sends(gym.Env[Any, Any]):
    """Sends one observation at each reset and another at each step, and ends its episodes.

    :param at_step: what it sends then
    :param at_reset: what it sends then
    :param space: what it declares
    :param ends_with: what it sends at the last of its steps; default is ``at_step``
    :param length: of its episodes
    """

    action_space = ACTIONS

    def __init__(
        self,
        at_step: Any = GOOD,
        at_reset: Any = GOOD,
        space: spaces.Space = DECLARED,
        ends_with: Any = None,
        length: int = 3,
    ) -> None:
        self.observation_space = space
        self.at_step, self.at_reset = at_step, at_reset
        self.ends_with = at_step if ends_with is None else ends_with
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.steps = 0
        return self.at_reset, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        ends = self.steps == self.length
        return self.ends_with if ends else self.at_step, float(self.steps), False, ends, {"success": self.steps == 2}


class Cuts(gym.ObservationWrapper):
    """Sends only so many numbers of an observation, and does not say so.

    :param size: how many; 0 for a number that is no array
    """

    def __init__(self, env: gym.Env, size: int) -> None:
        super().__init__(env)
        self.size = size

    def observation(self, observation: Any) -> Any:
        return observation[: self.size] if self.size else np.float32(0.5)
