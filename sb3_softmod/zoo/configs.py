"""Files of hyperparameters in the style of RL Zoo: where they are, and whether everything in them is known.

A file maps env names, or "default" for every other env, to hyperparameters. One block is our own: "policies" maps a
policy to ``policy_kwargs`` that stand behind those of a method, so that one file can make the networks of all methods
small. One key is, too: "num_threads", of PyTorch, a number or "half" of the cores.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, reduce
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import gymnasium as gym
import yaml
from rl_zoo3 import exp_manager
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.common.checks import require_choice, require_integer, require_names, require_number
from sb3_softmod.common.errors import ConfigurationError, FileError, nearest
from sb3_softmod.common.files import as_path, read_text
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.task_sets import ENV_OPTIONS, TASK_SETS, TaskSet
from sb3_softmod.learner.learned_weights import LEARNED_WEIGHTINGS
from sb3_softmod.methods import METHODS, Method, join_kwargs
from sb3_softmod.policies import POLICIES, MultiTaskSACPolicy, policy_options

#: The file that is read when none is named.
DEFAULT = "paper"

#: Keys that RL Zoo reads itself.
_ZOO_KEYS = (
    "n_timesteps",
    "n_envs",
    "normalize",
    "env_kwargs",
    "env_wrapper",
    "vec_env_wrapper",
    "frame_stack",
    "callback",
    "monitor_kwargs",
    "noise_type",
    "noise_std",
)
#: The key of PyTorch's threads, and its value that goes by the machine.
NUM_THREADS, HALF = "num_threads", "half"
#: What may stand inside some keys, whatever learns.
_KEYS_INSIDE = {
    "normalize": [name for name in inspect.signature(MultiTaskVecNormalize).parameters if name != "venv"],
    "monitor_kwargs": ["info_keywords"],  # of MonitorFile
}
#: Arguments of an algorithm that RL Zoo passes itself, from its command line.
_PASSED_BY_ZOO = ("env", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model")
_NOISES = ("normal", "ornstein-uhlenbeck")
#: Keys of a file that are no env.
_NO_ENVS = ("default", "policies", "atari")


def find_config(name: str | None) -> str:
    """The file, or the Python module, of a name.

    :param name: "paper", "laptop" or "laptop_mse", which ship with the package, a path, or a module; default is
        :data:`DEFAULT`
    :raises ConfigurationError: if there is none, with the nearest names
    """
    name = str(as_path(DEFAULT if name is None else name))
    shipped = _shipped()
    if name in shipped:
        return str(shipped[name])
    if os.path.isfile(name) and not name.endswith((".yml", ".yaml", ".py")):
        raise ConfigurationError(f"A file of hyperparameters ends in .yml, .yaml or .py, not as {name} does.")
    if os.path.isfile(name) or _is_module(name):
        return name
    raise ConfigurationError(f"There is no file of hyperparameters {name!r}: {nearest(name, shipped)}")


def load_config(path: str, algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """Read a file; refuse one in YAML if something in it is unknown, misspelt or there twice.

    :param path: what :func:`find_config` found
    :param algorithm: that the file is for
    :return: the whole file; of Python code the mapping ``hyperparams``
    :raises ConfigurationError: naming file, line and key
    """
    if path.endswith(".py"):
        return dict(run_path(path)["hyperparams"])
    if not path.endswith((".yml", ".yaml")):
        return deepcopy(dict(import_module(path).hyperparams))  # RL Zoo changes that of the module
    text = read_text(path)
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: of a date in the 13th month
        reason = str(error).replace('"<unicode string>"', path)  # what yaml calls the text that it was given
        raise FileError(f"{path} is no YAML: {reason}") from error
    known, known_inside, policies = known_hyperparameters(algorithm), _known_inside(algorithm), _policies()
    for env, block in _entries(path, root, "the file", [*TASK_SETS, *_NO_ENVS, *gym.registry]):
        if env == "policies":
            for policy, options in _entries(path, block, "policies", policies):
                _entries(path, options, policy, policy_options(policies[policy]))
            continue
        for key, value in _entries(path, block, env, known):
            if key in known_inside and isinstance(value, yaml.MappingNode):
                _entries(path, value, key, known_inside[key])
    for env in content.keys() - {"policies"}:
        _check_values(f"{path}: {env}", content[env])
    return content


def _check_values(place: str, block: Mapping[str, Any]) -> None:
    """Refuse values of what RL Zoo and we read before the algorithm checks its own."""
    for name, value in block.items():
        if isinstance(value, str) and _is_number(value):
            raise ConfigurationError(f"{place}: {name} is the text {value!r}: in YAML a number has a point, as 1.0e-3.")
    if "n_timesteps" in block:
        require_number(f"{place}: n_timesteps", block["n_timesteps"], 1)
    if "n_envs" in block:
        require_integer(f"{place}: n_envs", block["n_envs"], 1)
    given = {name: value for name, value in block.items() if value is not None}
    threads = given.get(NUM_THREADS, HALF)
    if isinstance(threads, str) and threads != HALF:
        raise ConfigurationError(f"{place}: {NUM_THREADS} must be a number or {HALF!r}, of the cores; not {threads!r}.")
    if threads != HALF:
        require_integer(f"{place}: {NUM_THREADS}", threads, 1)
    if "frame_stack" in given:
        require_integer(f"{place}: frame_stack", given["frame_stack"], 1)
    for name in ("env_kwargs", "policy_kwargs", "monitor_kwargs"):
        is_code = name != "env_kwargs" and isinstance(given.get(name), str)
        if name in given and not is_code:
            require_names(f"{place}: {name}", given[name])
    if "noise_type" in given:
        if given["noise_type"] not in _NOISES:
            found = nearest(given["noise_type"], _NOISES)
            raise ConfigurationError(f"{place}: unknown noise_type {given['noise_type']!r}: {found}")
        require_number(f"{place}: noise_std", given.get("noise_std"), 0)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def unchanged(config: str) -> Iterator[None]:
    """Keep the hyperparameters of a Python module, which RL Zoo changes in place, for the next who reads them."""
    is_file = config.endswith((".py", ".yml", ".yaml"))  # asking for a module train.yml would run train.py
    hyperparams = None if is_file or not _is_module(config) else getattr(import_module(config), "hyperparams", None)
    before: Any = deepcopy(hyperparams)
    try:
        yield
    finally:
        if isinstance(hyperparams, dict):
            hyperparams.clear()
            hyperparams.update(before)


def block_of(config: Mapping[str, Any], env: str) -> dict[str, Any]:
    """What a file says of an env."""
    return config.get(env, config.get("default")) or {}


def check_parameters(parameters: Mapping[str, Any], algorithm: type[BaseAlgorithm]) -> None:
    """Refuse hyperparameters of the command line that are unknown or cannot be used.

    :raises ConfigurationError: with the nearest names, or what the value must be
    """
    known = known_hyperparameters(algorithm)
    for name in parameters:
        require_choice("hyperparameter", name, known)
    _check_values("-params", parameters)


def check_keys(name: str, given: Mapping[str, Any]) -> None:
    """Refuse unknown keys of ``normalize`` or ``monitor_kwargs``, which may be code in files and options.

    :raises ConfigurationError: with the nearest that are known
    """
    for key in given:
        require_choice(f"key of {name}", key, _KEYS_INSIDE[name])


def known_hyperparameters(algorithm: type[BaseAlgorithm]) -> list[str]:
    """What may stand in a file for an algorithm."""
    arguments = [name for name in inspect.signature(algorithm).parameters if name not in _PASSED_BY_ZOO]
    return [*arguments, *_ZOO_KEYS, NUM_THREADS]


def complete(
    hyperparams: Mapping[str, Any],
    method: Method,
    task_set: TaskSet,
    config: Mapping[str, Any],
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Add what a method is to what a file says.

    What a method is :attr:`~.Method.defined_by` stays, whatever the file says, as do weights that are learned; the
    command line may replace it.

    :param hyperparams: those of the file for this env, changed by those of the command line
    :param method: its policy and options stand behind them; ``policy_kwargs`` are joined, one by one
    :param task_set: for which the method may know the number of steps and the size of its network
    :param config: the whole file
    :param given: the names of those of the command line
    :raises ConfigurationError: if nobody says how long to train
    """
    policy = method.policy
    if not isinstance(policy, str):  # RL Zoo imports the class by its name
        policy = f"{policy.__module__}.{policy.__qualname__}"
    definition = {name: method.options[name] for name in definition_of(method) if name not in given}
    out = {"policy": policy, **method.options, **hyperparams, **definition}
    if "n_timesteps" not in out:
        if task_set.tasks not in method.env_steps:
            raise ConfigurationError(
                f"Neither the file nor the method says how long to train on {task_set.name}: write n_timesteps into "
                "the file."
            )
        out["n_timesteps"] = method.env_steps[str(task_set.tasks)]
    of_method = out["policy"] == policy
    layers: list[Any] = [
        method.default_kwargs if of_method else None,
        config.get("policies", {}).get(out["policy"].rpartition(".")[2]),
        method.network_options(task_set.tasks) if of_method else None,
        block_of(config, task_set.name).get("policy_kwargs"),
        hyperparams.get("policy_kwargs"),
    ]
    # A string is Python code, as in RL Zoo, which evaluates it so.
    layers = [eval(layer, vars(exp_manager)) if isinstance(layer, str) else layer or {} for layer in layers]
    out["policy_kwargs"] = reduce(join_kwargs, layers)
    return out


def definition_of(method: Method) -> set[str]:
    """The names of the options that a method keeps, whatever a file or a trial says."""
    learned = {"loss_weighting"} if method.options.get("loss_weighting") in LEARNED_WEIGHTINGS else set()
    return {*method.defined_by, *learned}


def _entries(path: str, node: yaml.Node | None, of: str, known: Collection[str]) -> list[tuple[str, yaml.Node]]:
    """The keys and values of a mapping in a file, those of its anchors too.

    :param of: what the mapping describes
    :param known: the keys that may be there
    """
    if not isinstance(node, yaml.MappingNode):
        line = f", line {node.start_mark.line + 1}" if node is not None else ""
        raise ConfigurationError(f"{path}{line}: {of} must be a mapping (key: value).")
    seen: dict[str, yaml.Node] = {}
    merged: dict[str, yaml.Node] = {}
    for key, value in node.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        if key.tag == "tag:yaml.org,2002:merge":
            for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged = {**dict(_entries(path, each, of, known)), **merged}  # the first counts
            continue
        if not isinstance(key.value, str):
            raise ConfigurationError(f"{place}: a key of {of} must be a name.")
        if key.value not in known:
            raise ConfigurationError(f"{place}: unknown key {key.value!r} of {of}: {nearest(key.value, known)}")
        if key.value in seen:
            raise ConfigurationError(f"{place}: the key {key.value!r} of {of} is there twice.")
        seen[key.value] = value
    return list({**merged, **seen}.items())


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a path, or in a package that there is not
        return False


@cache
def _shipped() -> dict[str, Path]:
    paths = (Path(str(file)) for file in files("sb3_softmod.zoo_configs").iterdir())
    return {path.stem: path for path in paths if path.suffix == ".yml"}


def _policies() -> dict[str, type[MultiTaskSACPolicy]]:
    """The policies of the package, and those of methods that somebody added."""
    added = [method.policy for method in METHODS.values() if not isinstance(method.policy, str)]
    return {**POLICIES, **{policy.__name__: policy for policy in added}}


def _known_inside(algorithm: type[BaseAlgorithm]) -> dict[str, list[str]]:
    """What may stand inside some keys."""
    known = dict(env_kwargs=sorted({option for options in ENV_OPTIONS.values() for option in options}), **_KEYS_INSIDE)
    if issubclass(algorithm, SAC):
        options = {name for policy in _policies().values() for name in policy_options(policy)}
        known["policy_kwargs"] = sorted(options.union(inspect.signature(SACPolicy).parameters))
    return known
