"""Who works in a folder: one process at a time, whatever machine it is on, and nobody who is dead.

A claim is a file with the next number, made by a hard link, which every shared file system makes once only. Its owner
holds a lock on it and renews its time. On the same machine the lock says whether the owner lives, at once. A lock may
not reach other machines, so of those the time says it: an owner that has not renewed it for :data:`STALE` seconds is
taken for dead. Its number stays: who wants the folder next makes the number after it, and of two who do so one fails.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sb3_softmod.common.errors import FileError
from sb3_softmod.common.files import make_folder

try:
    import fcntl
except ImportError:  # Windows: the time alone tells
    fcntl = None  # type: ignore[assignment]

FOLDER = "claims"
#: Seconds between two renewals, and those after which an owner on another machine is taken for dead.
RENEW_EVERY, STALE = 20.0, 120.0


class Claim:
    """A folder that is this process's own until :meth:`release`, or until the process ends, however it ends.

    :param path: of the claim
    :param lock: on it
    :param on_lost: called, in a thread, if another process has taken the folder meanwhile: this one was stopped for so
        long, or cut off from the file system, that it was taken for dead
    """

    def __init__(self, path: Path, lock: IO[str], on_lost: Callable[[], None]) -> None:
        self._path, self._lock, self._on_lost = path, lock, on_lost
        self._released = threading.Event()
        threading.Thread(target=self._renew, daemon=True).start()

    @classmethod
    def take(cls, folder: Path, on_lost: Callable[[], None]) -> Claim | None:
        """Claim a folder, which is made.

        :return: None where somebody else who lives has it
        :raises FileError: if the file system cannot make claims
        """
        claims = folder / FOLDER
        make_folder(claims)
        draft = claims / f".draft-{uuid.uuid4().hex}"
        lock = draft.open("x")
        try:
            owner = {"machine": _machine(), "host": platform.node(), "pid": os.getpid()}
            lock.write(json.dumps(owner) + "\n")
            lock.flush()
            if fcntl is not None:
                with contextlib.suppress(_NoLocksError):
                    _lock(lock, fcntl.LOCK_EX)
            newest = _newest(claims)
            # By the clock of the file system, as the times of all claims are.
            if newest is not None and _lives(newest, now=os.stat(draft).st_mtime):
                lock.close()
                return None
            path = claims / f"{1 if newest is None else int(newest.name) + 1:06d}"
            try:
                os.link(draft, path)
            except FileExistsError:  # somebody was faster
                lock.close()
                return None
            for older in _numbered(claims)[:-1]:
                if int(older.name) < int(path.name):
                    older.unlink(missing_ok=True)
            return cls(path, lock, on_lost)
        except OSError as error:
            lock.close()
            raise FileError(
                f"Cannot claim {folder}: {error.strerror or error}. A grid needs a file system with hard links."
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    def release(self) -> None:
        """Let somebody else have the folder."""
        self._released.set()
        with contextlib.suppress(OSError):
            os.utime(self._path, (0, 0))
        self._lock.close()

    def _renew(self) -> None:
        while not self._released.wait(RENEW_EVERY):
            with contextlib.suppress(OSError):
                newest = _newest(self._path.parent)
                if newest is not None and newest.name != self._path.name:
                    self._on_lost()
                    return
                os.utime(self._path)


def claimed(folder: Path) -> bool:
    """Whether somebody who lives has claimed a folder."""
    newest = _newest(folder / FOLDER)
    return newest is not None and _lives(newest, now=time.time())


def owner_of(folder: Path) -> str:
    """Where the newest claim of a folder comes from: a host and a process."""
    newest = _newest(folder / FOLDER)
    owner = {} if newest is None else _owner(newest)
    return f"{owner.get('host', '?')}, process {owner.get('pid', '?')}"


def _numbered(claims: Path) -> list[Path]:
    if not claims.is_dir():
        return []
    return sorted(path for path in claims.iterdir() if path.name.isdigit())


def _newest(claims: Path) -> Path | None:
    return next(reversed(_numbered(claims)), None)


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(path: Path, now: float) -> bool:
    """Whether the owner of a claim lives and has not released it."""
    try:
        if fcntl is not None and _owner(path).get("machine") == _machine():
            with path.open() as file, contextlib.suppress(_NoLocksError):
                return not _lock(file, fcntl.LOCK_SH)
        return now - path.stat().st_mtime < STALE
    except FileNotFoundError:  # a newer one has taken its place
        return True


class _NoLocksError(Exception):
    """The file system has none: the time alone tells."""


def _lock(file: IO[str], kind: int) -> bool:
    """Lock a file until it is closed; whether nobody else has."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _NoLocksError from error
    return True


def _machine() -> str:
    """One boot of one machine, all of its containers included, where locks reach everybody."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode()}"
