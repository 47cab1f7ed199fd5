"""Checkpoints on disk: written whole or not at all, checked before they are read.

::

    checkpoints/
        segments/000000040000-0.npz  what the replay buffer got since the checkpoint before; written once
        000000040000/                the checkpoint at environment step 40,000
            manifest.json            format, version, size and SHA-256 of each file, the segments in their order
            model.zip, state.pkl, buffer.npz

Nothing here knows what is in the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sb3_softmod.common.errors import CheckpointError, ConfigurationError
from sb3_softmod.common.version import __version__

#: Of the files of a checkpoint; one more whenever older code could not read them rightly.
FORMAT = 1
FOLDER = "checkpoints"
_MANIFEST = "manifest.json"
_SEGMENTS = "segments"
#: What is being written, or deleted: nothing that begins so is ever read.
_PARTIAL = ".partial-"

#: Writes one file.
Writer = Callable[[Path], None]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is complete.

    :param folder: that holds its files
    :param step: environment steps until then
    :param files: by name, their sizes in bytes and SHA-256
    :param segments: the same of the replay buffer's segments, in their order, with what was said of each
    :param facts: what the writer had to say, as JSON has it
    """

    folder: Path
    step: int
    files: dict[str, dict[str, Any]]
    segments: dict[str, dict[str, Any]]
    facts: dict[str, Any]

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name

    def segment_files(self) -> list[Path]:
        """The replay buffer's segments, in their order."""
        return [self.folder.parent / _SEGMENTS / name for name in self.segments]

    def verify(self) -> None:
        """Compare all files with their sizes and checksums.

        :raises CheckpointError: naming the file, and what is wrong with it
        """
        for path, expected in [
            *((self.file(name), entry) for name, entry in self.files.items()),
            *zip(self.segment_files(), self.segments.values(), strict=True),
        ]:
            try:
                found = _entry(path)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
            if found["bytes"] != expected["bytes"]:
                raise CheckpointError(f"{path} has {found['bytes']:,} bytes instead of {expected['bytes']:,}.")
            if found["sha256"] != expected["sha256"]:
                raise CheckpointError(f"{path} is corrupted: its checksum is not that of when it was written.")


class CheckpointFolder:
    """Where the checkpoints of one run are. One process at a time may write there.

    :param path: the folder
    :param keep_last: how many checkpoints to keep
    :raises CheckpointError: if it cannot be written to, or another process writes there
    """

    def __init__(self, path: Path, keep_last: int) -> None:
        self.path = path
        self._keep_last = keep_last
        with contextlib.ExitStack() as undo:
            try:
                (path / _SEGMENTS).mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context((path / ".lock").open("a"))
                if not (_take(self._lock) or _take_soon(self._lock)):
                    raise CheckpointError(
                        f"Another process, or another CheckpointCallback, writes checkpoints to {path}: wait for its "
                        "end, or choose another folder."
                    )
                for leftover in [*path.glob(f"{_PARTIAL}*"), *(path / _SEGMENTS).glob(f"{_PARTIAL}*")]:
                    _remove(leftover)
                _sync(path)
                _sync(path.parent)
            except OSError as error:
                raise CheckpointError(f"Checkpoints cannot be written to {path}: {error.strerror}.") from error
            undo.pop_all()  # from now on the lock stays open

    def close(self) -> None:
        """Let another process write here."""
        self._lock.close()

    def write(
        self,
        step: int,
        files: Mapping[str, Writer],
        facts: Mapping[str, Any],
        segments: Mapping[str, Mapping[str, Any]],
        segment: Writer | None = None,
        segment_facts: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Write a checkpoint; what is older than the last ``keep_last``, and what is newer, goes then.

        :param step: environment steps
        :param files: by name
        :param facts: for its manifest
        :param segments: of checkpoints before, those that this one needs too, in their order
        :param segment: the next one, if there is one
        :param segment_facts: what shall be said of it, as JSON has it
        :raises OSError: if it could not be written; all others are then as they were
        """
        name = f"{step:012d}"
        new, final, added = self.path / f"{_PARTIAL}{name}", self.path / name, self._free_segment(name)
        entries: dict[str, Any] = {name: dict(entry) for name, entry in segments.items()}
        try:
            if segment is not None:
                partial = added.with_name(_PARTIAL + added.name)
                segment(partial)
                entries[added.name] = {**_written(partial), **(segment_facts or {})}
                partial.replace(added)
            new.mkdir()
            for file, write in files.items():
                write(new / file)
            written = {file: _written(new / file) for file in files}
            content = {"format": FORMAT, "version": __version__, "step": step, "files": written, "segments": entries}
            content["facts"] = dict(facts)
            (new / _MANIFEST).write_text(json.dumps({**content, "sha256": _seal(content)}, indent=1) + "\n")
            for path in (new / _MANIFEST, new, self.path / _SEGMENTS):
                _sync(path)
            if final.exists():
                _remove(final)
            new.replace(final)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            for leftover in (self.path / _SEGMENTS).glob(f"{_PARTIAL}*"):
                leftover.unlink(missing_ok=True)
            if not final.exists():  # an interruption may come just after it is complete
                added.unlink(missing_ok=True)  # or a full disk would get fuller with each attempt
            raise
        _sync(self.path)
        with contextlib.suppress(OSError):  # the next one tries again
            self._prune(step)
        return Checkpoint(final, step, written, entries, dict(facts))

    def _free_segment(self, name: str) -> Path:
        """By number too: a step may be reached again from a checkpoint before."""
        number = 0
        while (path := self.path / _SEGMENTS / f"{name}-{number}.npz").exists():
            number += 1
        return path

    def _prune(self, step: int) -> None:
        """Delete what no checkpoint needs that one would go on from."""
        kept: list[Checkpoint] = []
        for each in sorted(_steps(self.path), reverse=True):
            folder = self.path / f"{each:012d}"
            with contextlib.suppress(CheckpointError):  # one that cannot be read is none of those to keep
                if each <= step and len(kept) < self._keep_last:
                    kept.append(read(folder))
                    continue
            _remove(folder)
        needed = {name for checkpoint in kept for name in checkpoint.segments}
        for path in (self.path / _SEGMENTS).iterdir():
            if path.name not in needed:
                path.unlink()


def find(path: str | Path) -> Checkpoint:
    """The newest good checkpoint; a warning says what is wrong with those that are newer.

    :param path: the folder of a run, its ``checkpoints``, or one of those
    :raises CheckpointError: if there is none, with what is wrong with each
    """
    path = Path(path)
    if (path / _MANIFEST).is_file():
        checkpoint = read(path)
        checkpoint.verify()
        return checkpoint
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    wrong: list[str] = []
    for step in sorted(_steps(folder), reverse=True):
        try:
            checkpoint = read(folder / f"{step:012d}")
            checkpoint.verify()
        except CheckpointError as error:
            wrong.append(f"that at step {step:,}: {error}")
            continue
        if wrong:
            warnings.warn(
                f"Going on from the checkpoint at step {step:,}, because newer ones cannot be used; " + " ".join(wrong),
                stacklevel=4,
            )
        return checkpoint
    if wrong:
        raise CheckpointError(f"None of the checkpoints in {folder} can be used; {' '.join(wrong)}")
    raise CheckpointError(f"There is no checkpoint in {path}.")


def read(folder: Path) -> Checkpoint:
    """What a checkpoint says of itself; its files are not looked at.

    :raises CheckpointError: if its manifest cannot be read, or is of another format
    """
    path = folder / _MANIFEST
    try:
        content = json.loads(path.read_text())
        found = content["format"]
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is of format {found}, which is {'newer' if found > FORMAT else 'older'} than the format "
                f"{FORMAT} that this version reads: use sb3-softmod {content.get('version', '')}, which wrote it."
            )
        if content.pop("sha256") != _seal(content):
            raise CheckpointError(f"{path} is corrupted: its checksum is not that of when it was written.")
        return Checkpoint(folder, content["step"], content["files"], content["segments"], content["facts"])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is corrupted: {error!r}.") from error


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint in the folder of a run, whole or not."""
    return any(True for _ in _steps(run / FOLDER))  # there is a step 0


def is_locked(run: Path) -> bool:
    """Whether some process goes on with a run; nothing is made or touched."""
    with contextlib.suppress(OSError), (run / FOLDER / ".lock").open() as lock:
        return not _take(lock, shared=True)
    return False


def check_resumable(run: Path, status: str | None) -> None:
    """Refuse to go on with a run that is finished or that some process goes on with, before any file is touched.

    :param status: of its ``run.json``
    :raises ConfigurationError: for a finished one
    :raises CheckpointError: for one that is going on
    """
    # One that was killed while it wrote its last model has its checkpoints still.
    if status == "finished" and not has_checkpoint(run):
        raise ConfigurationError(f"{run} is finished: there is nothing to resume.")
    if (run / FOLDER).is_dir():
        CheckpointFolder(run / FOLDER, 1).close()


def _steps(folder: Path) -> Iterator[int]:
    if folder.is_dir():
        yield from (int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def _entry(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _written(path: Path) -> dict[str, Any]:
    """The entry of a file that was just written, once it is on the disk."""
    _sync(path)
    return _entry(path)


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _take_soon(file: IO[str]) -> bool:
    """Once more: somebody may just have looked whether the file is locked."""
    time.sleep(0.1)
    return _take(file)


def _take(file: IO[str], *, shared: bool = False) -> bool:
    """Lock a file, until it is closed or the process ends, however it ends; whether nobody else has.

    :param shared: only to look: others may look at the same moment
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs only what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a file or folder; a folder in such a way that no half of it looks like a checkpoint."""
    if path.is_dir():
        partial = path if path.name.startswith(_PARTIAL) else path.with_name(f"{_PARTIAL}old-{path.name}")
        if partial != path:
            shutil.rmtree(partial, ignore_errors=True)
            path.replace(partial)
        shutil.rmtree(partial, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
