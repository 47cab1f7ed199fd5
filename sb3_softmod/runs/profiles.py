"""Methods compared run by run: performance profiles and probabilities of improvement (Agarwal et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.runs.curves import draw_band, quieten
from sb3_softmod.runs.results import Entry, collect
from sb3_softmod.runs.run import Run
from sb3_softmod.runs.setting import differences
from sb3_softmod.runs.statistics import ENOUGH_SEEDS, performance_profiles, probability_of_improvement

#: Success rates at which profiles are drawn; no run is above 1.
THRESHOLDS = np.linspace(0, 0.995, 200)

#: Characters of a line of a label: names with many hyperparameters are long.
_LABEL = 48


@dataclass(frozen=True)
class Improvement:
    """How probable it is that a run of one method beats a run of another on the same task; ties count half.

    :param first: name of the one
    :param second: name of the other
    :param probability: of it
    :param interval: of 95 %, by stratified bootstrap; None of fewer than 3 seeds
    """

    first: str
    second: str
    probability: float
    interval: tuple[float, float] | None


def finished_entries(runs: Sequence[Run], benchmark: str) -> dict[str, Entry]:
    """The methods with a finished run on a benchmark.

    :param runs: what :func:`.find_runs` found
    :param benchmark: a task set
    :return: by title and, where not all had the same, what is different
    :raises ConfigurationError: if there is none, or if they are of different tasks
    """
    finished = [entry for entry in collect(runs) if entry.is_scored]
    entries = [entry for entry in finished if entry.benchmark == benchmark]
    if not entries:
        known = ", ".join(sorted({entry.benchmark for entry in finished})) or "nothing"
        raise ConfigurationError(f"No finished run on {benchmark} reports success; there are such runs on {known}.")
    if len({entry.setting.tasks for entry in entries}) > 1:
        raise ConfigurationError(f"The runs on {benchmark} are of different tasks: compare those of the same.")
    named = {}
    for entry in entries:
        # Different methods have different networks and hyperparameters anyway.
        own = {name: getattr(entry.setting, name) for name in ("parameters", "hyperparams")}
        settings = [each.setting if each.method == entry.method else each.setting._replace(**own) for each in entries]
        named[", ".join([entry.title, *differences(entry.setting, settings)])] = entry
    return named


def improvements(entries: Mapping[str, Entry]) -> list[Improvement]:
    """Every two methods, each pair once; the entries are by name."""
    return [
        Improvement(first, second, *probability_of_improvement(entries[first].scores, entries[second].scores))
        for first, second in combinations(entries, 2)
    ]


def draw_profiles(runs: Sequence[Run], benchmark: str) -> Figure:
    """The share of runs, over seeds and tasks, above each success rate, and the probability that one method beats
    another; both with 95 % intervals by stratified bootstrap, but where there are fewer than 3 seeds.

    :param runs: what :func:`.find_runs` found
    :param benchmark: a task set
    :raises ConfigurationError: if no run of it has ended
    """
    entries = finished_entries(runs, benchmark)
    return profiles_figure(entries, improvements(entries), benchmark)


def profiles_figure(entries: Mapping[str, Entry], pairs: Sequence[Improvement], benchmark: str) -> Figure:
    """What :func:`draw_profiles` draws.

    :param entries: by name, of :func:`finished_entries`
    :param pairs: of :func:`improvements`, which take long
    :param benchmark: for the title
    """
    versus = [fill(f"{pair.first} > {pair.second}", _LABEL) for pair in pairs]
    lines = sum(1 + text.count("\n") for text in versus)
    profiles = performance_profiles({name: entry.scores for name, entry in entries.items()}, THRESHOLDS)
    labels = {}
    for name, entry in entries.items():
        count = len(entry.scores)
        few = "" if count >= ENOUGH_SEEDS else "; too few for an interval"
        label = f"{name} ({count} seed{'s' * (count > 1)} of {entry.episodes} episodes a task{few})"
        labels[name] = fill(label, 2 * _LABEL)
    height = 3.0 + 0.2 * sum(1 + text.count("\n") for text in labels.values()) + 0.2 * max(lines - 8, 0)
    figure = Figure(figsize=(10.8 if pairs else 6.4, height), layout="constrained")
    left, *right = figure.subplots(1, 1 + bool(pairs), squeeze=False)[0]
    for place, (name, (profile, (low, high))) in enumerate(profiles.items()):
        band = None if len(entries[name].scores) < ENOUGH_SEEDS else (100 * low, 100 * high)
        draw_band(left, place, 100 * THRESHOLDS, 100 * profile, band, label=labels[name])
    left.set(xlabel="success rate (%)", ylabel="runs above it (%)", xlim=(0, 100), ylim=(-3, 103))
    goals = " and ".join(dict.fromkeys(str(entry.setting.goals) for entry in entries.values()))
    left.set_title(f"{benchmark} ({goals} goals)", fontsize=10)
    for axis in right:
        _draw_improvements(axis, pairs, versus)
    for axis in (left, *right):
        quieten(axis)
    figure.legend(loc="outside lower left", fontsize=8, frameon=False)
    return figure


def _draw_improvements(axis: Axes, pairs: Sequence[Improvement], labels: Sequence[str]) -> None:
    for place, pair in enumerate(pairs):
        if pair.interval is not None:
            axis.plot(pair.interval, (place, place), color="0.6", linewidth=5, solid_capstyle="butt")
        axis.plot(pair.probability, place, "|", color="black", markersize=11, markeredgewidth=2)
    axis.axvline(0.5, color="0.4", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(pairs)), labels)
    axis.set(xlim=(-0.03, 1.03), ylim=(len(pairs) - 0.5, -0.5), xlabel="probability of improvement")
