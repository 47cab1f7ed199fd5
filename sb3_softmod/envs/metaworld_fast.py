"""What Meta-World computes, with fewer calls of Python, numpy and scipy, and the same numbers.

MuJoCo takes half of a step of an env. The rest is Python, called thousands of times a second for arrays of a few
numbers. Rewards and quaternions are computed by functions of Meta-World's modules, so that :func:`speed_up_modules` is
for all of Meta-World's envs in a process, a user's own among them.

The numbers are equal to the bit, but for quaternions on Apple's processors, where scipy rounds less often.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.utils import reward_utils
from scipy.spatial import transform

_tolerance_of_meta_world = reward_utils.tolerance


def tolerance(
    x: Any, bounds: tuple[float, float] = (0.0, 0.0), margin: Any = 0.0, sigmoid: str = "gaussian", **others: Any
) -> Any:
    """Meta-World's ``tolerance``, of which nearly all rewards are made; of two numbers without arrays.

    :return: 1 within the bounds; outside, with the sigmoid "long_tail", 1 / (1 + 9 d²) at a distance of d margins
    """
    lower, upper = bounds
    # Numbers of float64: np.float64 is a float, np.float32 is not.
    numbers = isinstance(x, float) and isinstance(margin, float)
    if not numbers or sigmoid != "long_tail" or others or not (lower <= upper and margin > 0):
        return _tolerance_of_meta_world(x, bounds, margin, sigmoid, **others)  # type: ignore[arg-type]
    if lower <= x <= upper:
        return 1.0
    distance = float((lower - x if x < lower else x - upper) / margin)
    return 1.0 / ((distance * 3.0) ** 2 + 1.0)


class Rotation:
    """What Meta-World takes of scipy's ``Rotation``: the quaternion of a matrix.

    scipy spends most of its time on making sure that the matrix is orthogonal; here it must be, as MuJoCo's are.
    """

    def __init__(self, quaternion: np.ndarray) -> None:
        self._quaternion = quaternion

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Rotation:
        """:param matrix: ``[3, 3]``, orthogonal, with determinant 1"""
        (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
        trace = a + e + i
        largest = max(a, e, i, trace)  # tells which component is farthest from 0: none is divided by nearly 0
        if largest == a:
            x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
        elif largest == e:
            x, y, z, w = d + b, 1 - trace + 2 * e, h + f, c - g
        elif largest == i:
            x, y, z, w = g + c, h + f, 1 - trace + 2 * i, d - b
        else:
            x, y, z, w = h - f, c - g, d - b, 1 + trace
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return cls(np.array([x / norm, y / norm, z / norm, w / norm]))

    def as_quat(self) -> np.ndarray:
        """``[4]``: x, y, z, w."""
        return self._quaternion


def touching_object(env: SawyerXYZEnv, object_geom_id: int) -> bool:
    """Meta-World's ``touching_object``, which looks at the contacts one by one, for all of them at once."""
    contacts = env.data.contact
    of_object = (contacts.geom == object_geom_id).any(1)
    for pad in ("leftpad_geom", "rightpad_geom"):
        touching = of_object & (contacts.geom == env.data.geom(pad).id).any(1)
        if not sum(env.data.efc_force[row] for row in contacts.efc_address[touching]) > 0:
            return False
    return True


def observation(env: SawyerXYZEnv, claws: Sequence[int]) -> np.ndarray:
    """Meta-World's ``_get_curr_obs_combined_no_goal``.

    :param claws: the two bodies whose distance is the opening of the gripper
    :return: ``[18]``: position of the hand, opening (1 at 10 cm), and position and quaternion of each object
    """
    out = np.zeros(4 + env._obs_obj_max_len)
    out[:3] = env.get_endeff_pos()
    between = env.data.xpos[claws[0]] - env.data.xpos[claws[1]]
    out[3] = min(math.sqrt(between.dot(between)) / 0.1, 1.0)
    positions, quaternions = env._get_pos_objects().reshape(-1, 3), env._get_quat_objects().reshape(-1, 4)
    objects = out[4 : 4 + 7 * len(positions)].reshape(-1, 7)
    objects[:, :3], objects[:, 3:] = positions, quaternions
    return out


def reset(env: SawyerXYZEnv) -> tuple[np.ndarray, dict[str, Any]]:
    """Meta-World's reset in half the time.

    It settles the arm twice, and the second time starts from scratch: what the first leaves behind is where it put
    the bodies of the model, for which the kinematics are enough.
    """

    def first() -> np.ndarray:
        del env.reset_model  # the second time is Meta-World's own
        with kinematics_alone(env):
            return env.reset_model()

    env.reset_model = first  # type: ignore[method-assign]
    return env.reset()


@contextmanager
def kinematics_alone(env: SawyerXYZEnv) -> Iterator[None]:
    """Place the bodies, but let no time pass."""
    env.do_simulation = lambda *_: mujoco.mj_kinematics(env.model, env.data)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del env.do_simulation


def speed_up(env: SawyerXYZEnv) -> None:
    """Let an env compute its contacts and observations with these functions."""
    claws = [env.model.body(name).id for name in ("rightclaw", "leftclaw")]
    env.touching_object = partial(touching_object, env)  # type: ignore[method-assign]
    env._get_curr_obs_combined_no_goal = partial(observation, env, claws)  # type: ignore[method-assign]


def speed_up_modules() -> None:
    """Let all of Meta-World's envs in this process compute rewards and quaternions with these functions."""
    replaced = {"tolerance": (_tolerance_of_meta_world, tolerance), "Rotation": (transform.Rotation, Rotation)}
    for module in (reward_utils, *(sys.modules[each.__module__] for each in ALL_V3_ENVIRONMENTS.values())):
        for name, (old, new) in replaced.items():
            if getattr(module, name, None) is old:
                setattr(module, name, new)
