"""Where no file system is shared: the folder of a cell goes to the node that trains it, and comes back, through Ray.

An actor on the driver's machine reads and writes there. A task fetches what it holds of its cell, works in a folder of
its node, and brings what has changed, again and again, so that what a dead node had brought is not lost: its run goes
on elsewhere from the last checkpoint that came. What comes is put in place as a whole, the files before the checkpoint
that stands for them: no reader, and no run that goes on, finds a checkpoint newer than the tables beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sb3_softmod.grid.claims import FOLDER as CLAIMS
from sb3_softmod.grid.claims import claimed
from sb3_softmod.grid.process import Order
from sb3_softmod.saving.checkpoints import FOLDER as CHECKPOINTS

#: Seconds between two bringings, and bytes that travel at once.
BRING_EVERY, PIECE = 10.0, 32 << 20
_INCOMING = ".incoming"


class Files:
    """Reads and writes in folders of the machine that it is on."""

    def listing(self, folder: str) -> dict[str, int]:
        """The files below a folder, and their sizes."""
        return {name: path.stat().st_size for name, path in _files(Path(folder))}

    def read(self, folder: str, name: str, offset: int) -> bytes:
        """A piece of a file."""
        with (Path(folder) / name).open("rb") as file:
            file.seek(offset)
            return file.read(PIECE)

    def write(self, folder: str, name: str, offset: int, piece: bytes) -> None:
        """Put a piece of a file aside."""
        path = Path(folder) / _INCOMING / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)

    def put_in_place(self, folder: str, names: list[str], gone: list[str]) -> None:
        """Let what was put aside be the files, then delete those that are gone."""
        for name in sorted(names, key=_rank):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / _INCOMING / name).replace(path)
        for name in sorted(gone, key=_rank, reverse=True):
            path = Path(folder) / name
            path.unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        shutil.rmtree(Path(folder) / _INCOMING, ignore_errors=True)


def files_of_driver() -> Any:
    """The actor, on this machine; it ends with this driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Files).options(num_cpus=0, scheduling_strategy=here).remote()


class Carrier:
    """Carries the folder of a cell between its home and this node.

    :param files: the actor
    :param order: of the cell, at home
    """

    def __init__(self, files: Any, order: Order) -> None:
        self._files, self._home = files, str(order.folder)
        # The same on all nodes: a run that goes on finds the paths that it was begun with.
        digest = hashlib.sha256(self._home.encode()).hexdigest()[:16]
        self._folder = Path(tempfile.gettempdir()) / "sb3_softmod_grid" / digest
        #: The order with the folder on this node.
        self.order = replace(order, folder=self._folder)
        self._brought: dict[str, tuple[int, int]] = {}
        self._next = 0.0

    def fetch(self) -> bool:
        """Get what home has of the cell; False if a run that Ray has given up still writes here."""
        if claimed(self._folder):
            return False
        self.clear()
        self._folder.mkdir(parents=True)
        for name, size in ray.get(self._files.listing.remote(self._home)).items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < size:
                    piece = ray.get(self._files.read.remote(self._home, name, file.tell()))
                    if not piece:  # it became shorter meanwhile
                        break
                    file.write(piece)
        self._brought = dict(self._stamps())
        self._next = time.monotonic() + BRING_EVERY
        return True

    def bring_if_due(self) -> None:
        """Bring home what has changed, if that is long ago."""
        if time.monotonic() >= self._next:
            self.bring()
            self._next = time.monotonic() + BRING_EVERY

    def bring(self) -> None:
        """Bring home what has changed."""
        there = self._brought.copy()
        whole = False
        while not whole:  # a file may go away meanwhile, as an old checkpoint does
            # Checkpoints first: the tables, which are read after them, hold at least the rows of their steps.
            now = dict(sorted(self._stamps(), key=lambda item: -_rank(item[0])))
            for name, stamp in now.items():
                whole = there.get(name) == stamp or self._send(name)
                if not whole:
                    break
                there[name] = stamp
            else:
                whole = True
        sent = [name for name in now if there[name] != self._brought.get(name)]
        gone = [name for name in self._brought if name not in now]
        ray.get(self._files.put_in_place.remote(self._home, sent, gone))
        self._brought = now

    def clear(self) -> None:
        """Leave nothing on this node."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, name: str) -> bool:
        """Send a file; False if it has gone away."""
        try:
            with (self._folder / name).open("rb") as file:
                piece, offset = file.read(PIECE), 0
                while piece or not offset:
                    ray.get(self._files.write.remote(self._home, name, offset, piece))
                    offset += max(len(piece), 1)
                    piece = file.read(PIECE)
        except FileNotFoundError:
            return False
        return True

    def _stamps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for name, path in _files(self._folder):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            yield name, (stat.st_size, stat.st_mtime_ns)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files but those that belong to this machine, or are being written."""
    # Not by rglob, which raises an error where a folder goes away meanwhile, as an old checkpoint does.
    for path in sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names):
        parts = path.relative_to(folder).parts
        own = parts[0] in (CLAIMS, _INCOMING) or path.name == ".lock" or path.suffix == ".tmp"
        if path.is_file() and not own and not any(part.startswith(".partial-") for part in parts):
            yield path.relative_to(folder).as_posix(), path


def _rank(name: str) -> int:
    """Checkpoints stand for the files beside them, and need their segments."""
    parts = Path(name).parts
    return 0 if CHECKPOINTS not in parts else 1 if "segments" in parts else 2
