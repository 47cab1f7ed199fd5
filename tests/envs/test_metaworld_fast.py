"""Meta-World's computations with fewer calls give Meta-World's numbers, to the bit."""

from __future__ import annotations

import itertools
import math
import platform
from collections.abc import Callable
from typing import Any

import metaworld
import numpy as np
import pytest
from meta_worlds_own import tolerance, use_meta_worlds_own
from metaworld.policies import ENV_POLICY_MAP
from scipy.spatial.transform import Rotation

from sb3_softmod.envs import metaworld_fast
from sb3_softmod.envs.metaworld import MetaWorldEnv

OPTIONS: tuple[dict[str, Any], ...] = (
    {"sigmoid": "long_tail"},
    {"sigmoid": "long_tail", "value_at_margin": 0.3},
    {"sigmoid": "gaussian"},
    {},
)


def test_tolerance() -> None:
    rng = np.random.default_rng(0)
    for case in range(3000):
        lower, width, margin = rng.uniform(0, 0.1, 3)
        x: Any = rng.normal(0.1, 0.3)
        if case % 3:
            x = np.float64(x)
        if case % 2:
            lower = 0  # as Meta-World often has it
        for options in OPTIONS:
            arguments: Any = dict(bounds=(lower, lower + width), margin=margin if case % 5 else 0, **options)
            ours, theirs = metaworld_fast.tolerance(x, **arguments), tolerance(x, **arguments)
            assert ours == theirs, (x, arguments)
            assert type(ours) is type(theirs) is float
    edges = [metaworld_fast.tolerance(x, bounds=(1, 2), margin=2.0, sigmoid="long_tail") for x in (1.0, 2.0, 4.0, -1.0)]
    assert edges == [1, 1, 0.1, 0.1]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("x", "upper", "margin"),
    [
        (np.float32(0.3), 0.1, 0.4),
        (0.3, 0.1, np.float32(0.4)),
        (1, 0.1, 0.4),
        (1, 2, 1),
        (0.3, 0.1, 2),
        (math.nan, 0.1, 0.4),
        (0.3, math.nan, 0.4),
        (0.3, 0.1, math.nan),
        (math.inf, 0.1, 0.4),
        (0.3, 0.1, math.inf),
        (0.3, math.inf, 0.4),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tolerance_of_other_numbers(options: dict[str, Any], x: Any, upper: float, margin: Any) -> None:
    ours, theirs = (
        outcome(function, x, bounds=(0, upper), margin=margin, **options)
        for function in (metaworld_fast.tolerance, tolerance)
    )
    assert ours == theirs


def outcome(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[type, str]:
    """What a function returns or raises."""
    try:
        found = function(*arguments, **options)
    except ValueError as error:
        found = error
    return type(found), repr(found)


def test_tolerance_of_arrays_and_of_bad_arguments() -> None:
    x = np.linspace(-1, 1, 7)
    arguments: Any = dict(bounds=(0, 0.1), margin=0.4, sigmoid="long_tail")
    np.testing.assert_array_equal(metaworld_fast.tolerance(x, **arguments), tolerance(x, **arguments))
    with pytest.raises(ValueError, match="`margin` must be non-negative"):
        metaworld_fast.tolerance(0.5, margin=-1, sigmoid="long_tail")
    with pytest.raises(ValueError, match="Lower bound must be <= upper bound"):
        metaworld_fast.tolerance(0.5, bounds=(1, 0), margin=1, sigmoid="long_tail")
    with pytest.raises(ValueError, match="Unknown sigmoid type 'short_tail'"):
        metaworld_fast.tolerance(0.5, margin=1, sigmoid="short_tail")


def test_quaternions() -> None:
    """Of random rotations, of the 24 of a cube, and of matrices as far from orthogonal as rounding makes them."""
    signs = (np.diag(each) for each in itertools.product([1.0, -1.0], repeat=3))
    axes = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]
    cube = [sign @ order for sign in signs for order in axes if np.linalg.det(sign @ order) > 0]
    assert len(cube) == 24
    rng = np.random.default_rng(0)
    largest = set()
    for matrix in (*cube, *Rotation.random(2000, random_state=0).as_matrix()):
        for seen in (matrix, matrix + rng.normal(0, 1e-15, (3, 3))):
            expected = Rotation.from_matrix(seen).as_quat()
            found = metaworld_fast.Rotation.from_matrix(seen).as_quat()
            if platform.machine() == "arm64":  # where scipy's compiler fuses products and sums
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
            else:
                assert found.tobytes() == expected.tobytes()
            largest.add(int(np.abs(expected).argmax()))
    assert largest == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "geom"), [("pick-place-v3", "objGeom"), ("peg-insert-side-v3", "peg")])
def test_an_episode_that_grasps(monkeypatch: pytest.MonkeyPatch, name: str, geom: str) -> None:
    """Meta-World's expert: each observation and reward, and whether the fingers touch, as Meta-World's own have it."""
    expert: Any = ENV_POLICY_MAP[name]()  # type: ignore[abstract]
    env = MetaWorldEnv(name, seed=0)
    simulator: Any = env.unwrapped
    obs, _ = env.reset()
    start, seen, touched = obs, [], []
    for _ in range(120):
        action = np.clip(expert.get_action(obs), -1, 1).astype(np.float32)
        obs, reward, _, _, info = env.step(action)
        main = simulator.data.geom(geom).id
        touched.append(simulator.touching_object(main))
        assert touched[-1] == type(simulator).touching_object(simulator, main)
        seen.append((action, obs, reward, info))
    assert 20 < sum(touched) < 100

    use_meta_worlds_own(monkeypatch)
    benchmark = metaworld.MT1(name, seed=0)
    theirs = benchmark.train_classes[name]()
    first = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, 0))).integers(50)
    theirs.set_task(benchmark.train_tasks[first])
    np.testing.assert_array_equal(theirs.reset()[0], start)
    for action, obs, reward, info in seen:
        expected_obs, expected_reward, _, _, expected_info = theirs.step(action)
        np.testing.assert_array_equal(obs, expected_obs)
        assert (reward, info) == (expected_reward, expected_info)
