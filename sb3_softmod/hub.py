"""A run as a folder for the Hugging Face hub: model, card, config, results, videos; and its upload."""

from __future__ import annotations

import json
import math
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.files import as_path, check_folder, make_folder, read_text, replacing, write_text
from sb3_softmod.evaluation.evaluate import make_evaluation_env
from sb3_softmod.evaluation.result import TaskEvaluation, interval, mean_over_tasks, percent
from sb3_softmod.evaluation.video import record_episodes
from sb3_softmod.runs.evaluation import env_options, final_evaluation, load_model
from sb3_softmod.runs.run import Run, load_run
from sb3_softmod.saving.plain_models import save_plain

#: Of ``run.json``: what the run was. The rest is of the machine that it ran on, paths among it.
_TOLD = (
    *("method", "title", "task_set", "tasks", "goals", "horizon", "reward_version", "seed", "status", "env_kwargs"),
    *("planned_env_steps", "planned_minutes", "env_steps", "gradient_steps", "parameters", "network", "packages"),
)


def write_hub_folder(folder: str | Path, out: str | Path, *, best: bool = False, video: bool = False) -> list[Path]:
    """Write what the hub shows of a run. Nothing in it is pickled, so that whoever loads it runs no code of it.

    - ``<method>-<tasks>.zip``: the model, without optimizers, for ``SoftModSAC.load``
    - ``README.md``: the card, with success on each task, of how many episodes and goals, and how to load the model
    - ``config.json``: what the run was, and ``config.yml``, its hyperparameters
    - ``results.json``: the evaluation of ``sb3-softmod evaluate``, or the last one of training
    - with ``video``, ``videos/<task>.mp4``, and the first of them as ``replay.mp4``, which the hub plays

    :param folder: of the run
    :param out: the folder to write, made if need be
    :param best: the best model of training instead of the last
    :param video: film an episode of each task
    :return: the files
    :raises ConfigurationError: for a folder that is no run or was not evaluated, a model that plain files cannot hold,
        or a missing package
    :raises FileError: for a folder that cannot be written
    """
    run, out = load_run(folder), as_path(out)
    check_folder(out)
    hub = _huggingface()
    found = final_evaluation(run)
    of_training = "during_training_at" in found.settings
    if not of_training and found.settings.get("model", "last") != ("best" if best else "last"):
        raise ConfigurationError(
            f"The evaluation in {run.folder} is of the {found.settings['model']} model: evaluate the one that is to be "
            f"published, sb3-softmod evaluate {run.folder}{' --best' * best}."
        )
    if of_training and best:
        raise ConfigurationError(
            f"What training tells of the best model is too good, since it was chosen by that: sb3-softmod evaluate "
            f"{run.folder} --best comes first."
        )
    model = load_model(run, best=best)
    make_folder(out)
    name = f"{run.method}-{run.benchmark}"
    save_plain(model, out / f"{name}.zip")
    found.to_json(out / "results.json")
    facts = {key: run.manifest[key] for key in _TOLD if key in run.manifest}
    files = [out / f"{name}.zip", out / "results.json"]
    files.append(write_text(out / "config.json", json.dumps(facts, indent=1) + "\n"))
    hyperparameters = run.folder / run.benchmark / "config.yml"
    if hyperparameters.exists():
        files.append(write_text(out / "config.yml", read_text(hyperparameters)))
    if video:
        options = {**env_options(run), "seed": run.goals_seed, "render_mode": "rgb_array"}
        with closing(make_evaluation_env(model, run.benchmark, options=options)) as env:
            films = record_episodes(model, env, out / "videos")
        with replacing(out / "replay.mp4") as draft:
            draft.write_bytes(films[0].read_bytes())
        files += [*films, out / "replay.mp4"]
    files.append(write_text(out / "README.md", _card(hub, run, name, found, best=best, films=video)))
    return files


def upload(folder: Path, repository: str) -> str:
    """Upload a folder of :func:`write_hub_folder`, by the account of ``hf auth login``.

    :param repository: "you/name", made if need be
    :return: its address
    :raises ConfigurationError: for a name that is none, or what the hub refuses, with what it says
    """
    check_repository(repository)
    api = _huggingface().HfApi()
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload {folder.name}")
    except Exception as error:  # of huggingface_hub and of the connection below it
        raise ConfigurationError(f"The hub did not take {repository}: {type(error).__name__}: {error}") from error
    return str(url)


def check_repository(name: str) -> None:
    """Refuse what no repository of the hub is called.

    :raises ConfigurationError: naming it
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigurationError(f"A repository of the hub is called 'you/name', not {name!r}.")


def _huggingface() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigurationError("The hub needs huggingface_hub: pip install 'sb3-softmod[hub]'.") from error
    return huggingface_hub


def _card(hub: Any, run: Run, name: str, found: TaskEvaluation, *, best: bool, films: bool) -> str:
    """The metadata that the hub reads, and the text that people do."""
    rates = [*zip(found.task_names, found.success_rate, strict=True), ("mean", found.mean_success_rate)]
    metrics = [
        ("success_rate", f"success rate, {task}", round(rate, 4)) for task, rate in rates if not math.isnan(rate)
    ]
    metrics.append(("mean_reward", "mean return of an episode", round(mean_over_tasks(found.mean_return), 2)))
    results = [
        hub.EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=run.benchmark,
            dataset_name=run.benchmark,
            metric_type=kind,
            metric_name=name_of_metric,
            metric_value=value,
        )
        for kind, name_of_metric, value in metrics
    ]
    data = hub.ModelCardData(
        library_name="stable-baselines3",
        tags=["reinforcement-learning", "multi-task", "stable-baselines3", "sb3-softmod", run.benchmark, run.method],
        model_name=name,
        eval_results=results,
    )
    films_text = "\nAn episode of each task is in `videos/`.\n" if films else ""
    return f"""---
{data.to_yaml()}
---

# {run.title} on {run.benchmark}

{_beginning(run)}One policy for {len(run.task_names)} tasks, trained with sb3_softmod: \
{run.manifest.get("env_steps", run.steps):,} environment steps over all tasks, {run.goals}, \
horizon {run.manifest.get("horizon")}, seed {run.manifest["seed"]}; the \
{"best" if best else "last"} model. It is one run: how much another seed would differ, these numbers do not say.

{_table(found)}

{_played(found, run)}
{films_text}
## Use

```python
from sb3_softmod import MultiTaskSAC

model = MultiTaskSAC.load("{name}.zip")  # nothing in the file is pickled
action = model.act(observation, task="{run.task_names[0]}")  # a raw observation
```

`config.yml` has the hyperparameters, `config.json` what the run was, `results.json` the numbers above.
"""


def _table(found: TaskEvaluation) -> str:
    rows = ["| task | success | 95 % interval | return |", "|---|---|---|---|"]
    tasks = zip(found.task_names, found.success_rate, found.success_interval, found.mean_return, strict=True)
    for task, rate, (low, high), mean_return in tasks:
        rows.append(f"| {task} | {percent(rate)} | {interval((low, high))} | {mean_return:.0f} |")
    mean = "" if np.isnan(found.mean_success_rate) else f"{100 * found.mean_success_rate:.1f} %"
    rows.append(f"| mean | {mean} | | {mean_over_tasks(found.mean_return):.0f} |")
    return "\n".join(rows)


def _beginning(run: Run) -> str:
    """What was learned before, without the paths of this machine."""
    before = run.manifest.get("adapted_from")
    if before:
        steps = f" after {before['env_steps']:,} environment steps" if "env_steps" in before else ""
        return f"It was adapted from a policy of {before.get('task_set')}{steps}. "
    return "It went on from a trained model. " if run.origin else ""


def _played(found: TaskEvaluation, run: Run) -> str:
    """How the numbers came about."""
    episodes = f"{min(found.episodes)} episodes of each task"
    steps = found.settings.get("during_training_at")
    if steps is not None:
        return f"Of the last evaluation of the training, at {steps:,} steps: {episodes}, {run.goals}."
    protocol, goals = found.settings.get("protocol"), found.settings.get("goals", run.manifest.get("goals"))
    horizon = found.settings.get("horizon", run.manifest.get("horizon"))
    by = f" by the protocol {protocol!r}" if protocol else ""
    return f"Evaluated{by}: {episodes}, {goals} goals of seed {found.settings.get('seed')}, horizon {horizon}."
