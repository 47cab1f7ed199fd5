"""``run.json`` in words: what runs were, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sb3_softmod.evaluation.result import percent

#: Keys of the manifest with their words, by heading. What stands in none of them comes under "Further".
_WORDS: dict[str, dict[str, str]] = {
    "Method and tasks": {
        "title": "method",
        "method": "name",
        "task_set": "task set",
        "goals": "goals",
        "horizon": "horizon, steps",
        "reward_version": "rewards",
        "env_kwargs": "environment options",
        "n_envs": "environments",
        "seed": "seed",
        "hyperparams": "hyperparameters",
    },
    "How it went": {
        "status": "status",
        "error": "error",
        "planned_env_steps": "planned environment steps",
        "planned_minutes": "planned minutes",
        "env_steps": "environment steps",
        "env_steps_by_task": "of each task",
        "gradient_steps": "gradient steps",
        "wall_time_s": "training time",
        "started": "started",
        "ended": "ended",
        "resumed": "resumed",
        "continues": "continues",
        "began_with": "began with",
        "last_success_rate": "success, last evaluation",
        "best_success_rate": "success, best evaluation",
        "last_mean_reward": "return, last evaluation",
        "best_mean_reward": "return, best evaluation",
    },
    "Network": {"network": "options", "parameters": "parameters"},
    "Machine and software": {"hardware": "machine", "python": "Python", "git": "source"},
    "To run it again": {"arguments": "command", "config": "hyperparameters of"},
}
#: Elsewhere on the page, or said by what is shown.
_SILENT = ("tasks", "packages", "command")
_TIMES = ("started", "ended")


@dataclass(frozen=True)
class Row:
    """One line of the sheet.

    :param label: what it is
    :param cells: of each run, the parts of the value as pairs of name (may be empty) and text; empty where a manifest
        says nothing
    """

    label: str
    cells: list[list[tuple[str, str]]]

    @property
    def same(self) -> bool:
        """Whether all runs have it in common."""
        return all(cell == self.cells[0] for cell in self.cells)


def sheet_of(manifests: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Row]]]:
    """The lines under their headings; a line that no manifest has is left out.

    :param manifests: of runs
    """
    known = {key for words in _WORDS.values() for key in words} | set(_SILENT)
    further = {key: key.replace("_", " ") for manifest in manifests for key in manifest if key not in known}
    sections = []
    for heading, words in {**_WORDS, "Further": further}.items():
        rows = [Row(label, [_cell(key, manifest) for manifest in manifests]) for key, label in words.items()]
        rows = [row for row in rows if any(row.cells)]
        if rows:
            sections.append((heading, rows))
    return sections


def packages_of(manifests: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Each installed package with its versions, more than one where runs differ; those first.

    :param manifests: of runs
    """
    lists = [found for manifest in manifests if isinstance(found := manifest.get("packages"), Mapping)]
    names = sorted({str(name) for packages in lists for name in packages}, key=str.lower)
    versions = {name: list(dict.fromkeys(str(packages.get(name, "none")) for packages in lists)) for name in names}
    return sorted(versions.items(), key=lambda item: len(item[1]) == 1)


def _cell(key: str, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    value: Any = manifest.get(key)
    if key == "wall_time_s" and _is_number(value):
        return [("", duration(value))]
    if key.endswith("_success_rate") and _is_number(value):
        return [("", percent(value))]
    if key == "arguments" and isinstance(value, list):
        command = "adapt" if "adapted_from" in manifest else "train"
        return [("", shlex.join(["sb3-softmod", command, *map(str, value)]))]
    if key == "hyperparams" and isinstance(value, Mapping):  # what has lines of its own, and none of minutes stands for
        value = {name: each for name, each in value.items() if name not in ("n_timesteps", "n_envs", "env_kwargs")}
    if key == "began_with" and isinstance(value, Mapping) and not value.get("env_steps"):
        return []  # as most do
    if key in _TIMES and isinstance(value, str):
        return [("", value.replace("T", " ").replace("+00:00", " UTC"))]
    return _parts(key, value)


def _parts(key: str, value: Any) -> list[tuple[str, str]]:
    """Entries of a mapping with their names, and the rest as one text."""
    if isinstance(value, Mapping):
        parts = [(str(name).replace("_", " "), _text(part, name)) for name, part in value.items()]
        return [(name, text) for name, text in parts if text]
    text = _text(value, key)
    return [("", text)] if text else []


def _text(value: Any, key: str = "") -> str:
    if value is None:
        return ""
    if key == "seed":
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)


def duration(seconds: float) -> str:
    """As 1 h 5 min, 31 min or 12 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
