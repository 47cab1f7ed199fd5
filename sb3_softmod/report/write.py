"""Collect what run folders hold, and write it as one HTML file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.errors import ConfigurationError, SoftModError
from sb3_softmod.common.files import as_path, check_file, write_text
from sb3_softmod.evaluation.evaluate import make_evaluation_env
from sb3_softmod.evaluation.result import TaskEvaluation, percent
from sb3_softmod.report.charts import Style, chart, javascript, styles_of
from sb3_softmod.report.curves import METRICS, Label, Line, Metric, labels_of, lines_of, measured
from sb3_softmod.report.pictures import routing_pictures, videos
from sb3_softmod.report.sheet import duration, packages_of, sheet_of
from sb3_softmod.routing.routes import routed_networks
from sb3_softmod.runs.evaluation import env_options, last_of_training, load_model
from sb3_softmod.runs.run import Run, load_run
from sb3_softmod.runs.statistics import ENOUGH_SEEDS, mean_and_interval

T = TypeVar("T")

#: Heights of the charts in pixels.
_LARGE, _SMALL = 200, 110


@dataclass(frozen=True)
class Shown:
    """A run on the page.

    :param run: itself
    :param label: what it is called
    :param success: the evaluation after training or, without one, the last during training; None without either
    """

    run: Run
    label: Label
    success: TaskEvaluation | None


def write_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    best: bool = False,
    video: bool = False,
) -> tuple[Path, list[str]]:
    """Write the report of a run, or of several on the same tasks side by side. What is missing or broken in a folder is
    missing in the report, which says so.

    :param folders: of the run, or of each run
    :param out: the file; default ``report.html`` in the run folder, or in the folder that all of them lie in
    :param best: show the routing and the videos of the best model of training instead of the last; of one run
    :param video: film an episode of each task; of one run
    :return: the file, and what is missing in it
    :raises ConfigurationError: for a folder that is no run, runs of different tasks, or a file that cannot be written
    """
    given = [as_path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
    paths = {os.path.abspath(folder): folder for folder in given}
    runs = [Run.unevaluated(folder) for folder in paths.values()]
    if not runs:
        raise ConfigurationError("A report needs the folder of a run.")
    for run in runs:
        if (run.benchmark, run.task_names) != (runs[0].benchmark, runs[0].task_names):
            raise ConfigurationError(
                f"{runs[0].folder} is on {runs[0].benchmark}, {run.folder} on {run.benchmark}, or with other tasks of "
                "that name: a report for each."
            )
    if len(runs) > 1 and (best or video):
        raise ConfigurationError("Routing and videos are in the report of one run: --best and --video, too.")
    out = Path(os.path.commonpath(paths), "report.html") if out is None else as_path(out)
    check_file(out)

    problems: list[str] = []

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except SoftModError as error:
            problems.append(str(error))
        except Exception as error:  # whatever a broken file leads to: the rest of the report can still be read
            problems.append(f"{type(error).__name__}: {error}")
        return None

    runs = [attempt(partial(load_run, run.folder)) or run for run in runs]
    shown = []
    for run, label in zip(runs, labels_of(runs), strict=True):
        final = attempt(partial(getattr, run, "evaluation"))
        shown.append(Shown(run, label, final or last_of_training(run)))
        if shown[-1].success is None:
            problems.append(f"{run.folder} holds no evaluation yet: sb3-softmod evaluate {run.folder}")
    run = runs[0]
    model = attempt(lambda: load_model(run, best=best)) if len(runs) == 1 else None
    charts, styles = _charts(shown, attempt)
    text = _template().render(
        title=_title(runs),
        shown=shown,
        run=run,
        folders=[Path(path).name for path in paths],
        groups=_groups(shown),
        evaluated=[each for each in shown if each.success is not None],
        protocols=list(dict.fromkeys(_protocol(each.success) for each in shown if each.success is not None)),
        episodes=sorted({run.episodes for run in runs if run.episodes}),
        enough_seeds=ENOUGH_SEEDS,
        charts=charts,
        styles=styles,
        sheet=sheet_of([run.manifest for run in runs]),
        packages=packages_of([run.manifest for run in runs]),
        javascript=javascript() if charts else "",
        model="best" if best else "last",
        routing=attempt(lambda: _routing(run, model)) if model is not None and _is_routed(model) else None,
        videos=attempt(lambda: _videos(run, model)) if video and model is not None else None,
        problems=list(dict.fromkeys(problems)),
    )
    return write_text(out, text), list(dict.fromkeys(problems))


def _title(runs: Sequence[Run]) -> str:
    titles = list(dict.fromkeys(run.title for run in runs))
    return " and ".join(titles) if len(titles) < 4 else f"{len(titles)} methods"


@dataclass(frozen=True)
class _Group:
    """Runs of one method and setting: mean success, its 95 % interval over enough runs, and how many they are."""

    name: str
    mean: float
    interval: tuple[float, float] | None
    runs: int


def _groups(shown: Sequence[Shown]) -> list[_Group]:
    """Those whose tasks report success, of the runs that were evaluated; of finished ones alone, where there are any.
    Runs that were evaluated otherwise are groups of their own.
    """
    finished = {each.label.group for each in shown if each.run.finished}
    rates: dict[str, dict[str, list[float]]] = {}
    for each in shown:
        counts = each.run.finished or each.label.group not in finished
        if counts and each.success is not None and not _unknown(each.success.mean_success_rate):
            ways = rates.setdefault(each.label.group, {})
            ways.setdefault(each.run.way_of(each.success), []).append(each.success.mean_success_rate)
    groups = []
    named = {
        name if len(ways) == 1 else f"{name}, {way}": of_runs
        for name, ways in rates.items()
        for way, of_runs in ways.items()
    }
    for name, of_runs in named.items():
        mean, interval = mean_and_interval(np.array(of_runs)[:, None])
        bounds = None if interval is None else (max(0.0, float(interval[0][0])), min(1.0, float(interval[1][0])))
        groups.append(_Group(name, float(mean[0]), bounds, len(of_runs)))
    return groups


def _charts(
    shown: Sequence[Shown], attempt: Callable[[Callable[[], Any]], Any]
) -> tuple[list[dict[str, Any]], dict[str, Style]]:
    """For each metric that a run has, the charts of the mean over tasks and of each task; and the legend."""
    found: list[tuple[Metric, list[Line]]] = []
    for metric in METRICS:
        of_runs = [(each.label, attempt(partial(measured, each.run, metric))) for each in shown]
        if known := [(label, *curve) for label, curve in of_runs if curve is not None]:
            found.append((metric, lines_of(metric, known)))
    styles = styles_of([line for _, lines in found for line in lines], [each.label.series for each in shown])
    charts = [
        dict(
            key=metric.key,
            title=metric.title,
            explanation=metric.explanation,
            percent=metric.percent,
            has_mean=metric.has_mean,
            mean=chart(metric, lines, slice(1), styles, height=_LARGE),
            task=chart(metric, lines, slice(1, None), styles, height=_SMALL),
            lines=[line.as_json() for line in lines],
        )
        for metric, lines in found
    ]
    return charts, styles


def _is_routed(model: MultiTaskSAC) -> bool:
    try:
        return bool(routed_networks(model))
    except ConfigurationError:
        return False


def _routing(run: Run, model: MultiTaskSAC) -> dict[str, Any]:
    options = {**env_options(run), "seed": run.goals_seed}
    with closing(make_evaluation_env(model, run.benchmark, options=options)) as env:
        return routing_pictures(model, env)


def _videos(run: Run, model: MultiTaskSAC) -> dict[str, str]:
    options = {**env_options(run), "seed": run.goals_seed, "render_mode": "rgb_array"}
    with closing(make_evaluation_env(model, run.benchmark, options=options)) as env:
        return videos(model, env, routed=_is_routed(model))


# ---------------------------------------------------------------------------------- the page


def _template() -> Any:
    page = Environment(
        loader=PackageLoader("sb3_softmod.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # the curves are most of the page
    page.filters |= {
        "percent": lambda rate: "–" if _unknown(rate) else percent(rate),  # noqa: RUF001
        "whole": lambda value: "–" if _unknown(value) else f"{value:,.0f}",  # noqa: RUF001
        "duration": duration,
        "short": _short,
        "protocol": _protocol,
    }
    page.tests["known"] = lambda value: not _unknown(value)
    return page.get_template("report.html")


def _protocol(found: TaskEvaluation) -> str:
    """How an evaluation was made, in words."""
    settings, counts = found.settings, sorted(set(found.episodes))
    text = f"{' or '.join(map(str, counts))} episode{'s' * (counts[-1] != 1)} a task"
    if "during_training_at" in settings:
        return f"{text}, the last evaluation during training, at {settings['during_training_at']:,} environment steps"
    parts = [
        f"{text} after training",
        *([f"the {settings['model']} model"] if "model" in settings else []),
        *([f"{settings['protocol']} protocol"] if settings.get("protocol") else []),
        *([f"goals of seed {settings['seed']}"] if settings.get("seed") is not None else []),
    ]
    return ", ".join(parts)


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _short(value: float) -> str:
    """A number in a few characters: 360k, 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.3g}"
