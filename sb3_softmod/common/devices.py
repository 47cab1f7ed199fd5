"""Devices that a user names."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.utils import get_device

from sb3_softmod.common.errors import ConfigurationError


def check_device(name: str, device: Any) -> None:
    """Refuse a device that cannot hold a number, or that is not there: SB3 would take the CPU without a word.

    :raises ConfigurationError: naming the argument and the value
    """
    try:
        th.zeros(1, device=get_device(device)).item()
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigurationError(
            f"{name} must be a device such as 'cpu' or 'cuda', not {device!r} ({reason})."
        ) from error
    if device != "auto" and th.device(device).type == "cuda" and not th.cuda.is_available():
        raise ConfigurationError(f"{name} is {device!r}, but PyTorch finds no GPU here: take 'cpu' or 'auto'.")
