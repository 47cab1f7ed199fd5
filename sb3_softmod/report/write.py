"""Collect what a run folder holds, and write it as one HTML file."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from sb3_softmod.algorithm.multitask_sac import MultiTaskSAC
from sb3_softmod.common.errors import ConfigurationError, SoftModError
from sb3_softmod.common.files import check_file, replacing
from sb3_softmod.evaluation.evaluate import make_evaluation_env
from sb3_softmod.report.charts import Chart, chart, linear, logarithmic, short
from sb3_softmod.report.pictures import routing_pictures, videos
from sb3_softmod.routing.routes import routed_networks
from sb3_softmod.runs.evaluation import env_options, evaluation_after, goals_seed, last_of_training, load_model
from sb3_softmod.runs.progress import read_progress
from sb3_softmod.runs.run import FINAL, Run, load_run

T = TypeVar("T")


def write_report(
    folder: str | Path, out: str | Path | None = None, *, best: bool = False, video: bool = False
) -> tuple[Path, list[str]]:
    """Write the report of a run. What is missing or broken in its folder is missing in the report, which says so.

    :param folder: of the run
    :param out: the file; default ``report.html`` in the run folder
    :param best: show the routing and the videos of the best model of training instead of the last
    :param video: film an episode of each task
    :return: the file, and what is missing in it
    :raises ConfigurationError: for a folder that is no run, or a file that cannot be written
    """
    problems: list[str] = []

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except SoftModError as error:
            problems.append(str(error))
        except Exception as error:  # whatever a broken file leads to: the rest of the report can still be read
            problems.append(f"{type(error).__name__}: {error}")
        return None

    run = Run.unevaluated(folder)
    out = run.folder / "report.html" if out is None else Path(out)
    check_file(out)
    run = attempt(lambda: load_run(folder)) or run
    after = attempt(lambda: evaluation_after(run)) if (run.folder / FINAL).exists() else None
    success = after or last_of_training(run)
    if success is None:
        problems.append(f"{run.folder} holds no evaluation yet: sb3-softmod evaluate {run.folder}")
    model = attempt(lambda: load_model(run, best=best))
    text = _template().render(
        run=run,
        success=success,
        curves=_curves(run),
        progress=attempt(lambda: _progress(run)),
        model="best" if best else "last",
        routing=attempt(lambda: _routing(run, model)) if model is not None and _is_routed(model) else None,
        videos=attempt(lambda: _videos(run, model)) if video and model is not None else None,
        problems=problems,
    )
    with replacing(out) as draft:
        draft.write_text(text, encoding="utf-8")
    return out, problems


def _curves(run: Run) -> tuple[str, Chart] | None:
    """Success over the training, or the return where no task reports success."""
    if not run.steps:
        return None
    if np.isfinite(run.success).any():
        y = linear(0, 100, "{:.0f} %".format)
        return "success", chart(run.timesteps, 100 * run.success, run.task_names, y=y, text="{:.0f} %".format)
    returns = run.returns[np.isfinite(run.returns)]
    y = linear(returns.min(initial=0.0), returns.max(initial=0.0), short, ends_at_tick=True)
    return "return", chart(run.timesteps, run.returns, run.task_names, y=y, text=short)


def _progress(run: Run) -> dict[str, Chart]:
    """Temperatures and loss weights."""
    names = run.learning_tasks
    found = read_progress(run.folder, ("ent_coef", "loss_weight"), names)
    (steps, alpha), (weight_steps, weight) = found["ent_coef"], found["loss_weight"]
    y = linear(0, max(1.25, float(np.nanmax(weight))), "{:g}".format, ends_at_tick=True)
    return {
        "temperatures": chart(steps, alpha, names, y=logarithmic(alpha), text="{:.3g}".format),
        "weights": chart(weight_steps, weight, names, y=y, text="{:.3g}".format),
    }


def _is_routed(model: MultiTaskSAC) -> bool:
    try:
        return bool(routed_networks(model))
    except ConfigurationError:
        return False


def _routing(run: Run, model: MultiTaskSAC) -> dict[str, Any]:
    options = {**env_options(run), "seed": goals_seed(run)}
    with closing(make_evaluation_env(model, run.benchmark, options=options)) as env:
        return routing_pictures(model, env)


def _videos(run: Run, model: MultiTaskSAC) -> dict[str, str]:
    options = {**env_options(run), "seed": goals_seed(run), "render_mode": "rgb_array"}
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
    page.filters |= {
        "percent": lambda rate: "–" if _unknown(rate) else f"{100 * rate:.0f} %",  # noqa: RUF001
        "whole": lambda value: "–" if _unknown(value) else f"{value:,.0f}",  # noqa: RUF001
        "duration": _duration,
        "short": short,
        "plain": _plain,
    }
    page.tests["known"] = lambda value: not _unknown(value)
    return page.get_template("report.html")


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _plain(value: Any) -> str:
    """A value of the manifest."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: float) -> str:
    """As 1 h 5 min, 31 min or 12 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
