"""What is in the file of a model, and whether a replay buffer fits one; nothing in here runs code from a file.

Of a model, the zip file of SB3, everything but the weights may hold pickles, and unpickling runs code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_softmod.common.errors import ConfigurationError, FileError
from sb3_softmod.common.saved_files import checked_path, naming, opened

#: Without these, a file is no model of SB3.
_NEEDED = ("policy_class", "observation_space", "action_space", "policy_kwargs", "verbose")


def saved_facts(path: str | Path | Any) -> dict[str, Any]:
    """What a saved model says of itself in plain text; checks that the file is whole.

    :param path: the zip file, or a file object
    :return: by attribute of the model; what had to be pickled is a mapping with the key ":serialized:"
    :raises FileError: naming the file, if it is missing, broken or no model
    """
    with naming(path, "model"), opened(path) as file, zipfile.ZipFile(file) as archive:
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


def check_buffer(path: Any, buffer: Any, of_model: Mapping[str, Any]) -> None:
    """Refuse a replay buffer that a model cannot learn from.

    :param path: of its file
    :param of_model: its ``observation_space``, ``action_space``, ``num_tasks`` and ``n_envs``
    :raises FileError: naming the file, if it holds something else
    :raises ConfigurationError: naming the file and what is different, if the buffer is another model's
    """
    if not isinstance(buffer, ReplayBuffer):
        raise FileError(f"{path} holds no replay buffer but {type(buffer).__name__}.")
    facts = ["observation_space", "action_space"]
    facts.append("num_tasks" if hasattr(buffer, "num_tasks") else "n_envs")  # ours takes any number of envs
    for fact in facts:
        theirs, ours = getattr(buffer, fact), of_model[fact]
        if theirs != ours:
            what = fact.replace("num", "number of").replace("n_envs", "number of envs").replace("_", " ")
            raise ConfigurationError(
                f"The replay buffer in {path} does not fit the model: its {what} is {theirs}, not {ours}."
            )
