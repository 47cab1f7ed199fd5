"""Success rates of methods on benchmarks, as in Tables 1 and 2 of the paper."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sb3_softmod.common.checks import require_choice
from sb3_softmod.runs.run import FinalScore, Run, grouped, one_a_seed
from sb3_softmod.runs.setting import Setting, differences
from sb3_softmod.runs.statistics import Aggregate, aggregate

Format = Literal["markdown", "latex", "csv"]

#: What stands for a plus-minus, a line break and a percent sign in each format.
_SYMBOLS = {"markdown": ("±", "<br>", "%"), "latex": (r"$\pm$", r" \\ ", r"\%")}


@dataclass(frozen=True)
class Entry:
    """One method on one benchmark in one setting, so that all of its runs can be compared.

    :param method: name in the registry, or of the algorithm
    :param title: the name in the paper's tables
    :param benchmark: task set
    :param setting: what the runs were told, and how their scores were found
    :param scores: ``[seeds, tasks]``, of the finished runs
    :param episodes: of each task in the evaluations of the scores; the smallest, should they differ
    :param unfinished: environment steps of each run that did not reach its budget
    :param unevaluated: how many finished runs have no score
    :param network: its options, as text
    """

    method: str
    title: str
    benchmark: str
    setting: Setting
    scores: np.ndarray
    episodes: int
    unfinished: tuple[int, ...]
    unevaluated: int
    network: str

    @property
    def is_scored(self) -> bool:
        """Whether a task has a score in each of its finished runs: not every env reports success."""
        return len(self.scores) > 0 and bool(np.isfinite(self.scores).all(0).any())

    @property
    def aggregate(self) -> Aggregate | None:
        """Statistics over the seeds; None without a score."""
        return aggregate(self.scores) if self.is_scored else None


def collect(runs: Sequence[Run]) -> list[Entry]:
    """Sort runs by method, benchmark and setting, scores that were found in different ways apart.

    :param runs: what :func:`.find_runs` found
    :return: methods in the order of the registry, benchmarks by name, settings by budget
    :raises ConfigurationError: if a seed was run twice in one setting, so that the runs would not be independent
    """
    entries = []
    for group in map(one_a_seed, grouped(runs)):
        scored: dict[str | None, list[FinalScore]] = {}
        unfinished, unevaluated = [], 0
        for run in group:
            if run.finished and run.final is not None:
                scored.setdefault(run.final.evaluation, []).append(run.final)
            elif run.finished:
                unevaluated += 1
            else:
                unfinished.append(run.steps)
        for evaluation, finals in (scored or {None: []}).items():
            entries.append(
                Entry(
                    group[0].method,
                    group[0].title,
                    group[0].benchmark,
                    group[0].setting._replace(evaluation=evaluation),
                    np.array([final.success for final in finals]),
                    min((final.episodes for final in finals), default=0),
                    tuple(unfinished),
                    unevaluated,
                    ", ".join(f"{name} {value}" for name, value in group[0].manifest.get("network", {}).items()),
                )
            )
            unfinished, unevaluated = [], 0  # said once
    return entries


def results_table(runs: Sequence[Run], format: Format = "markdown") -> str:
    """Methods by benchmarks: mean ± std over the seeds, the interquartile mean with its 95 % interval, and of how
    many seeds and episodes. Of one or two seeds a spread says nothing: the cell then says that there are too few.

    Runs of other settings (budget, goals, any hyperparameter), or evaluated otherwise, are never mixed: a cell then has
    an entry for each, with what is different. A cell without a finished run says how far the runs came.

    :param runs: what :func:`.find_runs` found
    :param format: "markdown", "latex", or "csv" (a row for each entry, with all numbers)
    :raises ConfigurationError: for an unknown format, or a seed that was run twice
    """
    check_format(format)
    entries = collect(runs)
    if format == "csv":
        return _csv(entries)
    benchmarks = sorted({entry.benchmark for entry in entries})
    cells: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        cells.setdefault(entry.title, {}).setdefault(entry.benchmark, []).append(entry)
    rows = [[title, *(score_cell(found.get(b, []), format) for b in benchmarks)] for title, found in cells.items()]
    return render(format, ["Method", *benchmarks], rows)


def check_format(format: str) -> None:
    """Refuse an unknown format, and name the nearest known."""
    require_choice("format", format, get_args(Format))


def differences_of(entry: Entry, entries: Sequence[Entry]) -> str:
    """What sets an entry apart from the others of its method and benchmark; nothing where it is alone."""
    place = (entry.method, entry.benchmark)
    return ", ".join(differences(entry.setting, [e.setting for e in entries if (e.method, e.benchmark) == place]))


def score_cell(entries: Sequence[Entry], format: str) -> str:
    """One line for each entry of a method and benchmark; what is different between them stands in front."""
    line_break = _SYMBOLS[format][1]
    lines = []
    for entry in entries:
        label = differences_of(entry, entries)
        label = latex_text(label) if format == "latex" else label
        lines.append(f"{label}: {_score(entry, format)}" if label else _score(entry, format))
    text = line_break.join(lines)
    return rf"\shortstack{{{text}}}" if format == "latex" and len(lines) > 1 else text


def _score(entry: Entry, format: str) -> str:
    plus_minus, _, percent = _SYMBOLS[format]
    found = entry.aggregate
    parts = []
    if found is not None:
        seeds = f"{found.seeds} seed{'s' * (found.seeds > 1)}"
        spread = "" if found.std is None else f"{plus_minus} {100 * found.std:.1f} "
        parts.append(f"{100 * found.mean:.1f} {spread}{percent} ({seeds} of {entry.episodes} episodes a task")
        if found.std is None:
            parts[0] += ", too few for a spread"
        if found.iqm_interval is not None:
            low, high = found.iqm_interval
            parts[0] += f"; IQM {100 * found.iqm:.1f}, {100 * low:.1f} to {100 * high:.1f}"
        parts[0] += ")"
    elif len(entry.scores):
        parts.append("reports no success")
    if entry.unfinished:
        steps = ", ".join(f"{done:,}" for done in entry.unfinished)
        unit = "" if entry.setting.budget.minutes is None else " steps"
        parts.append(f"not finished: {steps}{unit} of {entry.setting.budget}")
    if entry.unevaluated:
        several = f"{entry.unevaluated} " if parts or entry.unevaluated > 1 else ""
        parts.append(f"{several}not evaluated (sb3-softmod evaluate)")
    return "; ".join(parts)


def render(format: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; empty cells become dashes, but for CSV. LaTeX's has the rules of booktabs."""
    if format == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([header, *rows])
        return out.getvalue()
    if format == "markdown":
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(cell or '–' for cell in line)} |" for line in lines)  # noqa: RUF001
    lines = [header, *([latex_text(title), *(cell or "--" for cell in cells)] for title, *cells in rows)]
    first, *body = (" & ".join(line) + r" \\" for line in lines)
    begin, end = rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", first, r"\midrule", *body, r"\bottomrule", end])


def latex_text(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub(r"[&_%#{}$]", r"\\\g<0>", text)


def _csv(entries: Sequence[Entry]) -> str:
    header = [
        "method", "title", "benchmark", "planned_env_steps", "planned_minutes", "horizon", "goals", "reward_version",
        "parameters", "seeds", "evaluation", "episodes_a_task", "mean", "std", "iqm", "iqm_low", "iqm_high",
        "unfinished_at", "not_evaluated", "different",
    ]  # fmt: skip
    rows = []
    for entry in entries:
        found, told = entry.aggregate, entry.setting
        facts = (told.horizon, told.goals, told.reward_version, told.parameters)
        numbers: list[Any] = ["", "", "", "", ""]
        if found is not None:
            numbers = [found.mean, "" if found.std is None else found.std, found.iqm, *(found.iqm_interval or ("", ""))]
        rows.append(
            [entry.method, entry.title, entry.benchmark, *told.budget, *facts, len(entry.scores), told.evaluation,
             entry.episodes,
             *numbers, " ".join(map(str, entry.unfinished)), entry.unevaluated, differences_of(entry, entries)]
        )  # fmt: skip
    return render("csv", header, rows)
