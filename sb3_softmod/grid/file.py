"""The file of a grid, and what a command line says instead: methods x task sets x seeds, and how to run them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sb3_softmod.common.checks import require_flag, require_integer, require_names, require_number, require_seed
from sb3_softmod.common.errors import ConfigurationError, FileError, nearest
from sb3_softmod.common.files import as_path, read_text
from sb3_softmod.grid.cells import Cell, Resources

#: Where the runs go unless a file says it.
DEFAULT_ROOT = Path("logs") / "grid"
#: How often a run that fails is started again.
DEFAULT_RETRIES = 3

_KEYS = ("algos", "envs", "seeds", "train", "resources", "runs", "retries", "shared")
_RESOURCES = ("threads", "memory", "gpus")
#: Options of ``train`` that are the grid's to say, and what says them.
_OURS = {
    **dict.fromkeys(("--algo",), "algos"),
    **dict.fromkeys(("--env",), "envs"),
    **dict.fromkeys(("--seed",), "seeds"),
    **dict.fromkeys(("--num-threads", "--vec-env"), "resources: threads"),
    **dict.fromkeys(("--device",), "resources: gpus"),
    **dict.fromkeys(("-f", "--log-folder", "-tb", "--tensorboard-log", "-uuid", "--uuid"), "runs"),
    **dict.fromkeys(("--resume", "--wandb-group", "-P", "--progress"), "the grid itself"),
}
#: Options whose value may be the path of a file.
_PATHS = ("-conf", "--conf-file", "-i", "--trained-agent", "--storage")
#: Names that stand for another option of train.
_ALIASES = {"params": "--hyperparams"}
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Grid:
    """The cells, and where Ray finds their files.

    :param cells: each once
    :param shared: whether every machine sees the folders of the cells; else Ray brings the files
    """

    cells: list[Cell]
    shared: bool = True


def read_grid(path: str | Path) -> Grid:
    """Read a file: a mapping, or a list of mappings, whose cells are all in the grid.

    Paths in it stand relative to its own folder, so that the same file means the same runs wherever it is read.

    :raises ConfigurationError: naming the file and the key
    """
    path = as_path(path)
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is no YAML: {error}") from error
    blocks = content if isinstance(content, list) else [content]
    cells, shared = [], set()
    for number, block in enumerate(blocks, start=1):
        place = str(path) if len(blocks) == 1 else f"{path}, block {number}"
        cells += _cells(place, path.absolute().parent, block)
        shared.add(block.get("shared", True))
    if len(shared) != 1:
        raise ConfigurationError(f"{path}: shared must be the same in all blocks, of which there must be one at least.")
    return Grid(_each_once(cells), shared.pop())


def grid_of_options(
    algos: Sequence[str],
    envs: Sequence[str],
    seeds: str,
    options: Sequence[str],
    resources: Mapping[str, Any],
    root: Path,
) -> Grid:
    """The grid of a command line.

    :param seeds: for instance "0-9" or "0,3,7"
    :param options: of ``train``
    :param resources: by the names of a file's
    :param root: where the runs go
    :raises ConfigurationError: as :func:`read_grid`
    """
    for text in options:
        if text.startswith("-"):
            _refuse_ours("the command line", text.partition("=")[0])
    options = _with_whole_paths(Path.cwd(), options)
    cells = [
        Cell.make(algo, env, seed, root.absolute(), options, _resources("the command line", resources), DEFAULT_RETRIES)
        for algo in algos
        for env in envs
        for seed in parse_seeds("--seeds", seeds)
    ]
    return Grid(_each_once(cells))


def parse_seeds(place: str, value: Any) -> list[int]:
    """Seeds from a number, a list of numbers, or a text such as "0-4,7".

    :raises ConfigurationError: naming the place
    """
    seeds: list[Any] = []
    for part in value if isinstance(value, list) else str(value).split(","):
        if found := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", str(part)):
            first, last = map(int, found.groups())
            if last < first or last - first > 10_000:
                raise ConfigurationError(f"{place}: seeds {part!r} must go up, and be at most 10,000.")
            seeds += range(first, last + 1)
        elif re.fullmatch(r"\s*\d+\s*", str(part)):
            seeds.append(int(part))
        else:
            raise ConfigurationError(
                f"{place}: seeds must be numbers such as 3, [0, 1, 2], 0-9 or 0-4,7, not {value!r}."
            )
    for seed in seeds:
        require_seed(seed)
    return list(dict.fromkeys(seeds))


def parse_memory(place: str, value: Any) -> int:
    """Bytes, from a number or a text such as "4G".

    :raises ConfigurationError: naming the place
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", str(value).lower())
    if isinstance(value, bool) or found is None or not float(found[1]):
        raise ConfigurationError(f"{place}: memory must be a size such as 4G or 800M, not {value!r}.")
    return int(float(found[1]) * _UNITS[found[2]])


def _cells(place: str, folder: Path, block: Any) -> list[Cell]:
    require_names(place, block)
    _refuse_unknown(place, block, _KEYS)
    for key in ("algos", "envs", "seeds"):
        if not block.get(key) and block.get(key) != 0:
            raise ConfigurationError(f"{place}: {key} is missing.")
    require_flag(f"{place}: shared", block.get("shared", True))
    retries = block.get("retries", DEFAULT_RETRIES)
    require_integer(f"{place}: retries", retries, 0)
    options = _options(place, folder, block.get("train") or {})
    resources = _resources(place, block.get("resources") or {})
    root = folder / as_path(block.get("runs", DEFAULT_ROOT))
    try:
        return [
            Cell.make(algo, env, seed, root, options, resources, retries)
            for algo in _names(place, "algos", block["algos"])
            for env in _names(place, "envs", block["envs"])
            for seed in parse_seeds(place, block["seeds"])
        ]
    except ConfigurationError as error:
        if str(error).startswith(place):
            raise
        raise ConfigurationError(f"{place}: {error}") from error


def _names(place: str, key: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{place}: {key} must be names, not {value!r}.")
    return list(dict.fromkeys(names))


def _options(place: str, folder: Path, given: Any) -> list[str]:
    """The block "train" as a command line: the long names of options, without their dashes."""
    require_names(f"{place}: train", given)
    options: list[str] = []
    for key, value in given.items():
        name = key.replace("_", "-")
        option = _ALIASES.get(name, f"--{name}")
        _refuse_ours(place, option)
        if value is None or value is False:
            continue
        options.append(option)
        if isinstance(value, Mapping):
            options += [f"{inner}:{text!r}" for inner, text in value.items()]
        elif value is not True:
            options += map(str, value if isinstance(value, list) else [value])
    return _with_whole_paths(folder, options)


def _with_whole_paths(folder: Path, options: Sequence[str]) -> list[str]:
    """Options with the whole paths of the files that they name: a run has another working folder."""
    found: list[str] = []
    for text in options:
        option, equals, value = text.partition("=")
        parts = [option, value] if equals and _names_file(option) else [text]
        if (found and _names_file(found[-1])) or len(parts) == 2:
            path = os.path.join(folder, parts[-1])
            parts[-1] = path if os.path.isfile(path) else parts[-1]
        found += parts
    return found


def _names_file(option: str) -> bool:
    return any(name.startswith(option) for name in _PATHS)  # train takes abbreviations


def _resources(place: str, given: Any) -> Resources:
    require_names(f"{place}: resources", given)
    _refuse_unknown(f"{place}: resources", given, _RESOURCES)
    threads, memory, gpus = given.get("threads", 1), given.get("memory"), given.get("gpus", 0)
    require_integer(f"{place}: threads", threads, 1)
    require_number(f"{place}: gpus", gpus, 0)
    if gpus > 1 and not math.isclose(gpus, round(gpus)):
        raise ConfigurationError(f"{place}: gpus must be a fraction of one, or a whole number, not {gpus!r}.")
    return Resources(threads, None if memory is None else parse_memory(place, memory), float(gpus))


def _refuse_unknown(place: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigurationError(f"{place}: unknown key {key!r}: {nearest(key, known)}")


def _refuse_ours(place: str, option: str) -> None:
    joined = option[:2] == "-f"  # with its value
    for name, says in _OURS.items():
        if name.startswith(option) or (joined and name == "-f"):  # train takes abbreviations
            raise ConfigurationError(f"{place}: {option} is no option of train in a grid: {says} says it.")


def _each_once(cells: Sequence[Cell]) -> list[Cell]:
    """Two blocks may hold the same cell."""
    return list({cell.folder: cell for cell in cells}.values())
