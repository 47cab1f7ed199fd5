"""Files that are written as a whole or not at all, and errors that name the file. Nothing here imports torch or SB3."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sb3_softmod.common.errors import FileError, SoftModError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_path(path: object) -> Path:
    """A path, of what a user passed for one.

    :raises FileError: for something else
    """
    if not isinstance(path, (str, os.PathLike)):
        raise FileError(f"A path must be a string or a pathlib.Path, not {path!r}.")
    if "\0" in os.fspath(path):
        raise FileError(f"No file can have the name {os.fspath(path)!r}: it holds a null character.")
    return Path(path)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """The path of a draft, which takes the place of the file once it is whole.

    Whoever reads the file meanwhile, and whoever ends the process, finds no half of one.

    :param path: of the file; its folder is made
    :raises FileError: naming the file, if it cannot be written; what was there before then stays
    """
    path = as_path(path)
    try:
        if path.is_dir():
            raise FileError(f"Cannot write {path}: it is a folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")  # others may write the file at the same moment
        try:
            yield draft
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except SoftModError:
        raise
    except OSError as error:
        raise FileError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a file of text, as a whole.

    :return: its path
    :raises FileError: as :func:`replacing`
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return as_path(path)


def check_folder(path: str | Path) -> None:
    """Refuse what cannot become a folder to write to, without making it: work may come before it is needed.

    :raises FileError: naming what is in the way
    """
    path = as_path(path)
    there = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if not os.path.isdir(there):
        raise FileError(f"Cannot write to {path}: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(f"Cannot write to {path}: {there} allows no writing.")


def check_file(path: str | Path) -> None:
    """Refuse what cannot become a file to write to; as :func:`check_folder`.

    :raises FileError: naming what is in the way
    """
    path = as_path(path)
    if os.path.isdir(path):
        raise FileError(f"Cannot write {path}: it is a folder.")
    check_folder(path.parent)


def make_folder(path: str | Path) -> None:
    """Make a folder where there is none.

    :raises FileError: if that cannot be done
    """
    path = as_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"Cannot make the folder {path}: {error.strerror or error}.") from error


def claim_folder(path: Path) -> Path:
    """Make a folder that nobody else has, not even another process that looks for one at this moment.

    :param path: that it gets if it is free; else the number at the end of its name goes up until none has it
    :return: its path
    :raises FileError: if it cannot be made
    """
    make_folder(path.parent)
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            stem, _, number = path.name.rpartition("_")
            path = path.with_name(f"{stem}_{int(number) + 1}" if number.isdigit() else f"{path.name}_1")
        except OSError as error:
            raise FileError(f"Cannot make the folder {path}: {error.strerror or error}.") from error


def check_writable(path: str | Path) -> None:
    """Make the folder of a file that is to be written later, and refuse a path where that cannot be done.

    :raises FileError: naming it
    """
    make_folder(as_path(path).parent)
    check_file(path)


def read_text(path: str | Path) -> str:
    """What a file of text holds.

    :raises FileError: naming the file, if it cannot be read or is no text
    """
    path = as_path(path)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is broken: it is no text ({error}).") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """What a JSON file with an object holds.

    :raises FileError: naming the file, if it cannot be read or holds something else
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SoftModError):
            raise
        raise FileError(f"{path} is broken ({error}).") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} is broken: it holds no JSON object but {type(content).__name__}.")
    return content


def save_figure(figure: Figure, stem: Path, note: str | None = None) -> list[Path]:
    """As SVG and PNG, in a folder that is made if need be.

    :param stem: of the names of the files
    :param note: below it: what it was made of, where the figure itself does not know
    :return: the files
    """
    if note is not None:
        figure.supxlabel(note, fontsize=7, color="0.35")
    files = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")}
    for kind, file in files.items():
        with replacing(file) as draft:
            figure.savefig(draft, format=kind, dpi=150)
    return list(files.values())
