"""The values on which a critic's distribution of returns lives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch as th
from torch import Tensor

from sb3_softmod.common.checks import require_integer, require_number
from sb3_softmod.common.errors import ConfigurationError

#: K, unless somebody says otherwise.
NUM_ATOMS = 101


class ValueAtoms(NamedTuple):
    r"""K values :math:`z_k`, evenly spaced on :math:`[v_{min}, v_{max}]` (C51, Bellemare et al. 2017).

    :param num_atoms: K
    :param v_min: the first
    :param v_max: the last
    """

    num_atoms: int
    v_min: float
    v_max: float

    @property
    def spacing(self) -> float:
        """From one to the next."""
        return (self.v_max - self.v_min) / (self.num_atoms - 1)

    def values(self, device: th.device | str = "cpu") -> Tensor:
        """All of them, ``[K]``."""
        return th.linspace(self.v_min, self.v_max, self.num_atoms, device=device)

    def position(self, values: Tensor) -> Tensor:
        """Where values lie among the atoms, in units of the spacing from the first; clipped to them."""
        return ((values - self.v_min) / self.spacing).clamp(0, self.num_atoms - 1)


def expectation(logits: Tensor, values: Tensor) -> Tensor:
    """The mean of a distribution; no matrix product, which autocast would round.

    :param logits: ``[..., K]``
    :param values: ``[K]``, of the atoms
    :return: ``[...]``
    """
    return (logits.softmax(-1) * values).sum(-1)


def require_atoms(num_atoms: Any, v_min: Any, v_max: Any) -> ValueAtoms:
    """Refuse what is no range of atoms.

    :raises ConfigurationError: naming the option and the value
    """
    require_integer("num_atoms", num_atoms, 2, 10_000)
    for name, value in (("v_min", v_min), ("v_max", v_max)):
        require_number(name, value)
    if not v_min < v_max or not math.isfinite(v_max - v_min):
        raise ConfigurationError(f"v_min must be below v_max, not {v_min} and {v_max}.")
    return ValueAtoms(num_atoms, float(v_min), float(v_max))
