"""Claims of a folder: one owner, and none that is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sb3_softmod.grid import claims
from sb3_softmod.grid.claims import Claim, claimed, owner_of

HOLD = """
import sys, time
from pathlib import Path
from sb3_softmod.grid.claims import Claim
print(Claim.take(Path(sys.argv[1]), lambda: None) is not None, flush=True)
time.sleep(600)
"""


def never() -> None:
    raise AssertionError("The claim was lost.")


def from_elsewhere(folder: Path, age: float) -> Path:
    """The newest claim of a folder as another machine would have made it, so many seconds ago."""
    path = sorted((folder / claims.FOLDER).iterdir())[-1]
    path.write_text(json.dumps({"machine": "another", "host": "far", "pid": 1}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_owner(tmp_path: Path) -> None:
    assert not claimed(tmp_path)
    claim = Claim.take(tmp_path, never)
    assert claim is not None
    assert claimed(tmp_path)
    assert owner_of(tmp_path).endswith(f"process {os.getpid()}")
    assert Claim.take(tmp_path, never) is None
    claim.release()
    assert not claimed(tmp_path)
    again = Claim.take(tmp_path, never)
    assert again is not None
    again.release()
    assert len(list((tmp_path / claims.FOLDER).iterdir())) == 1


def test_owner_that_is_killed(tmp_path: Path) -> None:
    """On the same machine a dead owner is known at once."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert claimed(tmp_path)
    assert Claim.take(tmp_path, never) is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not claimed(tmp_path)
    claim = Claim.take(tmp_path, never)
    assert claim is not None
    claim.release()


@pytest.mark.parametrize(("age", "lives"), [(claims.STALE - 30, True), (claims.STALE + 30, False)])
def test_owner_elsewhere(age: float, lives: bool, tmp_path: Path) -> None:
    """Of another machine, the time of the claim says it."""
    first = Claim.take(tmp_path, never)
    assert first is not None
    from_elsewhere(tmp_path, age)
    assert claimed(tmp_path) == lives
    second = Claim.take(tmp_path, never)
    assert (second is None) == lives
    for claim in (first, second):
        if claim is not None:
            claim.release()


def test_owner_that_was_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_EVERY", 0.3)
    lost = threading.Event()
    first = Claim.take(tmp_path, lost.set)
    assert first is not None
    from_elsewhere(tmp_path, claims.STALE + 30)
    second = Claim.take(tmp_path, never)
    assert second is not None
    assert lost.wait(30)
    assert claimed(tmp_path)  # by the second
    second.release()


def test_renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_EVERY", 0.05)
    claim = Claim.take(tmp_path, never)
    assert claim is not None
    path = from_elsewhere(tmp_path, claims.STALE + 30)
    before = path.stat().st_mtime
    deadline = time.monotonic() + 30
    while path.stat().st_mtime == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.time() - path.stat().st_mtime < claims.STALE
    claim.release()


def test_many_at_once(tmp_path: Path) -> None:
    """Of those who find the same dead claim, one gets the folder."""
    old = Claim.take(tmp_path, never)
    assert old is not None
    from_elsewhere(tmp_path, claims.STALE + 30)
    got: list[Claim] = []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        if (claim := Claim.take(tmp_path, never)) is not None:
            got.append(claim)

    workers: list[Callable[[], None]] = [take] * 8
    threads = [threading.Thread(target=worker) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    for claim in (old, *got):
        claim.release()
