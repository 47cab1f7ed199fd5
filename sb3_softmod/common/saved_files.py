"""Files of SB3's kind, pickles and zip files: written whole or not at all, and read with errors that name the file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.save_util import open_path

from sb3_softmod.common.errors import ConfigurationError, EnvError, FileError, SoftModError
from sb3_softmod.common.files import as_path, replacing

#: What reading a broken file may raise: whatever the constructors of the objects in it do.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def naming(path: Any, what: str) -> Iterator[None]:
    """Turn what a broken file makes others raise into an error that names the file.

    :param what: the file should be, for instance "model"
    :raises FileError: in place of those
    :raises ConfigurationError: for a file, whole perhaps, that needs a module which is not there
    """
    try:
        yield
    except EnvError:
        raise
    except ImportError as error:
        raise ConfigurationError(f"{path} needs code that is not there: {error}.") from error
    except (SoftModError, *BROKEN) as error:
        if isinstance(error, SoftModError):
            if str(path) in str(error):
                raise
            raise FileError(f"Cannot load {path}: {error}") from error
        if isinstance(error, OSError):
            raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
        reason = str(error).partition("\n")[0]
        raise FileError(
            f"{path} is broken, or no {what} of this package ({type(error).__name__}: {reason})."
        ) from error


def unpickled(path: str | Path | Any, what: str, suffix: str) -> Any:
    """What a pickle holds. This runs code from the file.

    :param path: the file, or a file object
    :param what: it should be, for the error
    :param suffix: that may be left out
    :raises FileError: naming the file, if it is missing or broken
    """
    with naming(path, what), opened(path, suffix) as file:
        return pickle.load(file)


@contextmanager
def writing(path: str | Path | Any, suffix: str) -> Iterator[Any]:
    """Where to save what SB3 saves, so that a file that is there stays until the new one is whole.

    :param path: the file, or a file object, which is written as it is
    :param suffix: of a path that has none
    :raises FileError: naming the file, if it cannot be written
    """
    if not isinstance(path, (str, os.PathLike)):
        if not isinstance(path, io.BufferedIOBase) or path.closed or not path.writable():
            raise FileError(f"A model is saved to a path or a binary file that is open for writing, not {path!r}.")
        yield path
        return
    whole = as_path(path)
    with replacing(whole if whole.suffix else whole.with_name(f"{whole.name}.{suffix}")) as draft:
        yield draft


def checked_path(path: Any) -> Any:
    """A path or a file object to read from."""
    if isinstance(path, (str, os.PathLike)):
        return as_path(path)
    if not isinstance(path, io.BufferedIOBase) or path.closed or not path.readable():
        raise FileError(f"A file is loaded from a path or a binary file that is open for reading, not {path!r}.")
    return path


@contextmanager
def opened(path: Any, suffix: str = "zip") -> Iterator[Any]:
    """A file to read from, open."""
    file = open_path(checked_path(path), "r", verbose=0, suffix=suffix)
    try:
        yield file
    finally:
        if file is not path:
            file.close()
