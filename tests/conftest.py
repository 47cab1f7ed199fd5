"""Shared by all tests."""

from __future__ import annotations

import pytest
import torch as th


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are fastest on one thread, and sums are then always in the same order."""
    th.set_num_threads(1)
