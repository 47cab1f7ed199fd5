"""What critics predict: distributions of returns computed by hand, and on a chain that is solved exactly."""

from __future__ import annotations

import math

import pytest
import torch as th

from sb3_softmod.learner.critic_objectives import (
    CriticObjective,
    CriticTarget,
    CrossEntropy,
    SquaredError,
    project,
)
from sb3_softmod.policies.value_atoms import ValueAtoms, expectation

CPU = th.device("cpu")
FIVE = ValueAtoms(5, -2.0, 2.0)  # -2, -1, 0, 1, 2


def logits_of(*distributions: list[float]) -> th.Tensor:
    """``[E, 1, K]``"""
    return th.tensor(distributions).clamp(min=1e-30).log().unsqueeze(1)


def target_of(
    logits: th.Tensor, reward: float, discount: float, cost: float = 0.0, over: CriticTarget = "min"
) -> list[float]:
    rows = (th.tensor([cost]), th.tensor([reward]), th.tensor([discount]))
    return CrossEntropy(FIVE, CPU).target(logits, over, *rows)[0].tolist()


def test_atoms() -> None:
    assert ValueAtoms(101, -10.0, 10.0).spacing == pytest.approx(0.2)
    assert FIVE.values().tolist() == [-2, -1, 0, 1, 2]
    assert expectation(logits_of([0.5, 0, 0, 0, 0.5], [0, 0, 0.25, 0.75, 0]), FIVE.values()).tolist() == [
        [pytest.approx(0)],
        [pytest.approx(0.75)],
    ]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0.0, [1, 0, 0, 0, 0]),
        (4.0, [0, 0, 0, 0, 1]),
        (2.0, [0, 0, 1, 0, 0]),
        (2.25, [0, 0, 0.75, 0.25, 0]),
        (3.5, [0, 0, 0, 0.5, 0.5]),
    ],
)
def test_projection_of_one_mass(position: float, expected: list[float]) -> None:
    mass = th.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]])
    assert project(mass, th.full((1, 5), position))[0].tolist() == expected


@pytest.mark.parametrize(
    ("reward", "discount", "cost", "expected"),
    [
        (1.0, 1.0, 0.0, [0, 0, 0, 0.5, 0.5]),  # from 0 and 1 to 1 and 2: on atoms
        (0.5, 1.0, 0.0, [0, 0, 0.25, 0.5, 0.25]),  # to 0.5 and 1.5: between them
        (0.0, 0.5, 0.0, [0, 0, 0.75, 0.25, 0]),  # to 0 and 0.5
        (9.0, 1.0, 0.0, [0, 0, 0, 0, 1]),  # beyond the greatest
        (-9.0, 1.0, 0.0, [1, 0, 0, 0, 0]),  # beyond the least
        (1.25, 0.0, 7.0, [0, 0, 0, 0.75, 0.25]),  # terminated: the reward alone
        (0.0, 0.5, 1.0, [0, 0.25, 0.75, 0, 0]),  # the entropy costs 1 there: to -0.5 and 0
    ],
)
def test_target_of_c51(reward: float, discount: float, cost: float, expected: list[float]) -> None:
    assert target_of(logits_of([0, 0, 0.5, 0.5, 0]), reward, discount, cost) == pytest.approx(expected, abs=1e-6)


def test_of_the_members() -> None:
    """The distribution of the lesser expectation, as a whole, or the mean of both."""
    logits = logits_of([0, 0, 0, 1, 0], [0.5, 0, 0, 0, 0.5])  # of expectations 1 and 0
    assert target_of(logits, 0.0, 1.0) == pytest.approx([0.5, 0, 0, 0, 0.5])
    assert target_of(logits, 0.0, 1.0, over="mean") == pytest.approx([0.25, 0, 0, 0.5, 0.25])
    q_values, one = th.tensor([[3.0], [1.0]]), th.ones(1)
    assert SquaredError().target(q_values, "min", one, one, 0.5 * one).tolist() == [1.0]
    assert SquaredError().target(q_values, "mean", one, one, 0.5 * one).tolist() == [1.5]


def test_cross_entropy() -> None:
    objective = CrossEntropy(FIVE, CPU)
    predictions = logits_of([0.1, 0.2, 0.4, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2])
    losses = objective.losses(predictions, th.tensor([[0, 0, 0.5, 0.5, 0]]))
    assert losses.tolist() == [
        [pytest.approx(-0.5 * math.log(0.4) - 0.5 * math.log(0.2))],
        [pytest.approx(math.log(5))],
    ]


# ----------------------------------------------------------------------------------------------------- a chain

#: Rewards of a walk along four states, after the last of which it terminates.
REWARDS = th.tensor([0.3, -0.5, 0.2, 1.0])
GAMMA, COST = 0.9, 0.1
DISCOUNTS = th.tensor([GAMMA, GAMMA, GAMMA, 0.0])


def exact_values() -> th.Tensor:
    values = th.zeros(5)
    for state in reversed(range(4)):
        values[state] = REWARDS[state] + DISCOUNTS[state] * (values[state + 1] - COST)
    return values[:4]


def trained(objective: CriticObjective, over: CriticTarget, width: tuple[int, ...], steps: int = 1000) -> th.Tensor:
    """The values that a table of predictions comes to, whose targets are made of itself."""
    table = th.zeros(2, 4, *width, requires_grad=True)
    optimizer = th.optim.Adam([table], lr=0.1)
    cost = th.full((4,), COST)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        with th.no_grad():
            target = objective.target(table.roll(-1, 1), over, cost, REWARDS, DISCOUNTS)
        optimizer.zero_grad()
        objective.losses(table, target).sum().backward()
        optimizer.step()
    return objective.q_values(table.detach())


def test_a_chain() -> None:
    """Every kind of critic comes to the exact values within an atom's width; C51's expectation to the values."""
    atoms = ValueAtoms(41, -2.0, 2.0)
    expected = exact_values().expand(2, 4)
    mse = trained(SquaredError(), "min", ())
    th.testing.assert_close(mse, expected, atol=1e-3, rtol=0)
    c51 = trained(CrossEntropy(atoms, CPU), "mean", (41,))
    th.testing.assert_close(c51, expected, atol=5e-3, rtol=0)


def test_expectations_obey_the_bellman_equation() -> None:
    """The fixed point of C51's targets themselves: what the division of masses keeps is their mean, exactly."""
    objective = CrossEntropy(ValueAtoms(41, -2.0, 2.0), CPU)
    logits = th.zeros(2, 4, 41)
    for _ in range(5):
        target = objective.target(logits.roll(-1, 1), "min", th.full((4,), COST), REWARDS, DISCOUNTS)
        logits = target.clamp(min=1e-30).log().expand(2, 4, 41)
    th.testing.assert_close(objective.q_values(logits), exact_values().expand(2, 4), atol=1e-5, rtol=0)
