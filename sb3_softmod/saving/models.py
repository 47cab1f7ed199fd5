"""Files of models and replay buffers: reading what is in them, with errors that name the file.

Of a model, the zip file of SB3, everything but the weights may hold pickles, and unpickling runs code. Only
:func:`unpickled` and SB3's own ``load`` do that; nothing else in here runs anything from a file.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file, open_path

from sb3_softmod.common.errors import ConfigurationError, EnvError, FileError, SoftModError
from sb3_softmod.common.files import as_path, replacing

if TYPE_CHECKING:
    from sb3_softmod.saving.sac import SavingSAC

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

#: Without these, a file is no model of SB3.
_NEEDED = ("policy_class", "observation_space", "action_space", "policy_kwargs", "verbose")


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


def saved_facts(path: str | Path | Any) -> dict[str, Any]:
    """What a saved model says of itself in plain text; checks that the file is whole.

    :param path: the zip file, or a file object
    :return: by attribute of the model; what had to be pickled is a mapping with the key ":serialized:"
    :raises FileError: naming the file, if it is missing, broken or no model
    """
    with naming(path, "model"), _opened(path) as file, zipfile.ZipFile(file) as archive:
        if broken := archive.testzip():
            raise FileError(f"{path} is broken: the checksum of {broken} in it is wrong.")
        for entry in ("data", "policy.pth", "pytorch_variables.pth"):
            if entry not in archive.namelist():
                raise FileError(f"{path} is no model: it is a zip file without the entry {entry!r}.")
        try:
            facts = json.loads(archive.read("data"))
        except RecursionError as error:
            raise FileError(f"{path} is no model: its entry 'data' is nested too deeply.") from error
        missing = [name for name in _NEEDED if not isinstance(facts, dict) or name not in facts]
        if missing:
            raise FileError(f"{path} is no model: its entry 'data' does not tell {', '.join(missing)}.")
        return facts


def saved_weights(path: str | Path | Any, device: th.device | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a saved model, without running code from the file.

    :param path: the zip file, or a file object
    :param device: where to load them to
    :return: the state dicts of networks and optimizers, and other tensors, by attribute of the model
    :raises FileError: naming the file, if it is missing, broken or no model
    """
    saved_facts(path)
    with naming(path, "model"):
        _, parameters, variables = load_from_zip_file(checked_path(path), load_data=False, device=device)
    return parameters, dict(variables or {})


def is_plain(fact: Any) -> bool:
    """Whether a fact of :func:`saved_facts` stands there as it is, and not as a pickle."""
    return not (isinstance(fact, Mapping) and ":serialized:" in fact)


def unpickled(path: str | Path | Any, what: str, suffix: str) -> Any:
    """What a pickle holds. This runs code from the file.

    :param path: the file, or a file object
    :param what: it should be, for the error
    :param suffix: that may be left out
    :raises FileError: naming the file, if it is missing or broken
    """
    with naming(path, what), _opened(path, suffix) as file:
        return pickle.load(file)


def check_buffer(path: Any, buffer: Any, model: SavingSAC) -> None:
    """Refuse a replay buffer that a model cannot learn from.

    :param path: of its file
    :raises FileError: naming the file, if it holds something else
    :raises ConfigurationError: naming the file and what is different, if the buffer is another model's
    """
    if not isinstance(buffer, ReplayBuffer):
        raise FileError(f"{path} holds no replay buffer but {type(buffer).__name__}.")
    facts = ["observation_space", "action_space"]
    facts.append("num_tasks" if hasattr(buffer, "num_tasks") else "n_envs")  # ours takes any number of envs
    for fact in facts:
        theirs, ours = getattr(buffer, fact), getattr(model, fact)
        if theirs != ours:
            what = fact.replace("num", "number of").replace("n_envs", "number of envs").replace("_", " ")
            raise ConfigurationError(
                f"The replay buffer in {path} does not fit the model: its {what} is {theirs}, not {ours}."
            )


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
def _opened(path: Any, suffix: str = "zip") -> Iterator[Any]:
    file = open_path(checked_path(path), "r", verbose=0, suffix=suffix)
    try:
        yield file
    finally:
        if file is not path:
            file.close()
