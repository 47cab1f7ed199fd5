"""Shared memory that is left behind, while tests beside this one make and remove theirs."""

from __future__ import annotations

import os
import time


def segments() -> set[str]:
    """The names of all that there are, whoever made them."""
    return set(os.listdir("/dev/shm"))


def left_behind(before: set[str], seconds: float = 10) -> set[str]:
    """Those that are new and stay: a segment loses its name as soon as both of its ends hold it.

    :param before: :func:`segments` of some time ago
    :param seconds: how long another process may take to get that far
    """
    end = time.monotonic() + seconds
    new = segments() - before
    while new and time.monotonic() < end:
        time.sleep(0.02)
        new &= segments()
    return new
