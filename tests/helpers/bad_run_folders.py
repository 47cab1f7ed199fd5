"""Bad run folders and files of hyperparameters for :mod:`bad_inputs`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import BadInput, later, of_file
from run_folders import write_run

from sb3_softmod import MultiTaskSAC
from sb3_softmod.evaluation import TaskEvaluation
from sb3_softmod.routing.snapshots import RoutingSnapshots
from sb3_softmod.runs.curves import collect_curves
from sb3_softmod.runs.progress import read_progress
from sb3_softmod.runs.results import collect, results_table
from sb3_softmod.runs.run import find_runs, load_run


def every(rng: np.random.Generator) -> list[BadInput]:
    """All of them.

    :param rng: for what is random in them
    """
    return [*runs(rng), *hyperparameters()]


def load_hyperparameters(path: Any) -> Any:
    from sb3_softmod.zoo.configs import find_config, load_config

    return load_config(find_config(path), MultiTaskSAC)


# -------------------------------------------------------------------------------------------------- run folders


def runs(rng: np.random.Generator) -> Iterator[BadInput]:
    def tables(folder: Path) -> None:
        """All that reads a run; the first that refuses it counts."""
        run = load_run(folder / "mt_sac" / "MT10-Fixed_0")
        run.final  # noqa: B018
        collect([run])
        results_table([run])
        collect_curves([run], "MT10-Fixed")
        find_runs(folder)

    def make(folder: Path) -> Path:
        return write_run(folder, "mt_sac", 0, {1000: [0.2, 0.4], 2000: [0.6, 1.0]})

    def broken(file: str, text: str, content: bytes | Callable[[Path], bytes]) -> BadInput:
        def prepare(folder: Path) -> None:
            run = make(folder)
            (run / file).write_bytes(content if isinstance(content, bytes) else content(run / file))

        return BadInput("run folders", f"{file}: {text}", tables, file, prepare)

    texts: dict[str, bytes] = {
        "is empty": b"",
        "is a list": b"[]",
        "is null": b"null",
        "is no text": b"\xff\xfe\x00",
        "is half an object": b'{"status": "finished", ',
        "is a deep nest": b"[" * 100_000,
        "is an empty object": b"{}",
    }
    for file in ("run.json", "evaluation.json"):
        for text, content in texts.items():
            yield broken(file, text, content)
    wrong: dict[str, tuple[Any, ...]] = {
        "status": (None, 3, []),
        "method": (None, 3, {}),
        "task_set": (None, 3, []),
        "tasks": (None, 3, "push", [], [1, 2], ["push", "push"], [["push"]], {"push": 1}),
        "seed": ([], {}),
        "planned_env_steps": (None, "many", -5, 0, [], 1e300),
        "horizon": ([], {}),
        "parameters": (3, "many", {"actor": "many", "critic": 1}, [1]),
        "network": (3, "wide", [1]),
    }
    for key, values in wrong.items():
        for value in values:
            yield broken(
                "run.json",
                f"{key} is {json.dumps(value)}",
                partial(_with_entry, key, value),
            )
    for text, tasks in (
        ("tasks is a list", []),
        ("no task", {}),
        ("one task of two", {"push": dict(success_rate=1, episodes=5)}),
        ("a word for a rate", {n: dict(success_rate="high", episodes=5) for n in ("push", "pull")}),
        ("a word for episodes", {n: dict(success_rate=1, episodes="few") for n in ("push", "pull")}),
        ("a list for a rate", {n: dict(success_rate=[1], episodes=5) for n in ("push", "pull")}),
        ("no episodes", {n: dict(success_rate=1) for n in ("push", "pull")}),
        ("infinitely many episodes", {n: dict(success_rate=1, episodes=float("inf")) for n in ("push", "pull")}),
    ):
        yield broken("evaluation.json", text, json.dumps(dict(tasks=tasks)).encode())
    rows = io.StringIO()
    csv.writer(rows).writerow(["timesteps", "task", "episodes", "success_rate", "mean_return", "length"])
    for text, line in (
        ("a word for steps", "many,push,5,1,1,1\n"),
        ("huge steps", f"{10**30},push,5,1,1,1\n"),
        ("a word for a rate", "1000,push,5,high,1,1\n"),
        ("one task of two", "1000,push,5,1,1,1\n"),
        ("an unknown task", "1000,pish,5,1,1,1\n1000,pull,5,1,1,1\n"),
        ("no column", "1000\n"),
        ("a field without end", '1000,"push'),
        ("a field of a megabyte", "1000," + "x" * 1_000_000 + ",5,1,1,1\n"),
    ):
        yield broken("evaluations.csv", text, (rows.getvalue() + line).encode())
    yield broken("evaluations.csv", "is empty", b"")
    yield broken("evaluations.csv", "is no text", b"\xff\xfe\x00\x01")

    good = json.loads(TaskEvaluation(["a", "b"], [5, 5], [0.5, 1], [0.5, 1], [1.0, 2], [3, 4]).to_json())
    for text, change in (
        ("no tasks", lambda c: c.pop("tasks")),
        ("an empty list of tasks", lambda c: c.update(tasks=[])),
        ("tasks without anything", lambda c: c.update(tasks={"a": {}})),
        ("zero tasks", lambda c: c.update(tasks={})),
        ("no settings", lambda c: c.pop("settings")),
        ("a word for settings", lambda c: c.update(settings="some")),
        ("a rate above 1", lambda c: c["tasks"]["a"].update(success_rate=7)),
        ("a word for a rate", lambda c: c["tasks"]["a"].update(success_rate="high")),
        ("a list for a return", lambda c: c["tasks"]["b"].update(mean_return=[1])),
        ("episodes below 0", lambda c: c["tasks"]["b"].update(episodes=-3)),
        ("endless episodes", lambda c: c["tasks"]["b"].update(episodes=float("inf"))),
    ):
        content = json.loads(json.dumps(good))
        change(content)
        yield of_file(
            "run folders", f"an evaluation: {text}", "e.json", json.dumps(content).encode(), TaskEvaluation.from_json
        )
    for text, content in texts.items():
        yield of_file("run folders", f"an evaluation {text}", "e.json", content, TaskEvaluation.from_json)
    arrays: dict[str, dict[str, Any]] = {
        "without steps": dict(task_names=["a"], entropy=np.zeros((1, 1))),
        "with a number for steps": dict(steps=3, task_names=["a"], entropy=np.zeros((1, 1))),
        "with entropies of other tasks": dict(steps=[1], task_names=["a"], entropy=np.zeros((1, 5))),
        "with pickles": dict(steps=np.array([{}], object), task_names=["a"], entropy=np.zeros((1, 1))),
        "with a word for tasks": dict(steps=[1], task_names="a", entropy=np.zeros((1, 1))),
        "with layers of other snapshots": dict(
            steps=[1], task_names=["a"], entropy=np.zeros((1, 1)), layer_0=np.zeros((2, 1, 2, 2))
        ),
    }
    files = {text: _npz(content) for text, content in arrays.items()}
    whole = _npz(dict(steps=[1], task_names=["a"], entropy=np.zeros((1, 1)), layer_0=np.zeros((1, 1, 2, 2))))
    for position in sorted(rng.choice(len(whole) - 1, 5, replace=False).tolist()):
        files[f"cut off after {position} bytes"] = whole[:position]
    files["of text"] = b"no arrays"
    for text, content in files.items():
        yield of_file("run folders", f"snapshots {text}", "routing.npz", content, RoutingSnapshots.load)
    for text, content in (
        ("empty", b""),
        ("of no text", b"\xff\x00\xfe\n"),
        ("without steps", b"ent_coef/a\n1\n"),
        ("without the metric", b"time/total_timesteps\n1\n"),
        ("without a row", b"time/total_timesteps,ent_coef/a\n"),
        ("of words", b"time/total_timesteps,ent_coef/a\nfew,much\n"),
        ("with a huge field", b"time/total_timesteps,ent_coef/a\n" + b"1" * 200_000 + b",1\n"),
    ):
        yield of_file(
            "run folders",
            f"progress.csv {text}",
            "progress.csv",
            content,
            lambda p: read_progress(p.parent, ["ent_coef"], ["a"]),
        )


def _with_entry(key: str, value: Any, path: Path) -> bytes:
    return json.dumps({**json.loads(path.read_text()), key: value}).encode()


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


# ----------------------------------------------------------------------------------------- hyperparameter files


def hyperparameters() -> Iterator[BadInput]:
    texts: dict[str, str | bytes] = {
        "nothing": "",
        "a word": "ten",
        "a list": "- 1\n- 2\n",
        "an unknown set": "MT11-Fixed:\n  gamma: 0.9\n",
        "an unknown key": "default:\n  gama: 0.9\n",
        "a key twice": "default:\n  gamma: 0.9\n  gamma: 0.8\n",
        "a block that is a list": "default: [1]\n",
        "a block that is nothing": "default:\n",
        "no YAML": "default: {gamma: [0.9\n",
        "a tab": "default:\n\tgamma: 0.9\n",
        "an unknown anchor": "default: *nobody\n",
        "a key that is a list": "default:\n  ? [a, b]\n  : 1\n",
        "a key that is a list, at the top": "? [a, b]\n: 1\n",
        "a Python object": "default:\n  gamma: !!python/object/apply:os.getcwd []\n",
        "a date that there is not": "default:\n  gamma: 2020-13-45\n",
        "a control character": b"default:\n  gamma: \x00\n",
        "no text": b"\xff\xfe\xfa",
        "a deep nest": "default: " + "[" * 20_000,
        "two documents": "default:\n  gamma: 0.9\n---\ndefault:\n  gamma: 0.9\n",
        "a word for n_timesteps": "default:\n  n_timesteps: many\n",
        "zero envs": "default:\n  n_envs: 0\n",
        "a list for policy_kwargs": "default:\n  policy_kwargs: [1]\n",
        "a list for env_kwargs": "default:\n  env_kwargs: [1]\n",
        "a number for policy_kwargs": "MT10-Fixed:\n  policy_kwargs: 3\n",
        "an unknown option of a network": "default:\n  policy_kwargs:\n    layers: 3\n",
        "an unknown policy": "policies:\n  SoftPolicy:\n    num_layers: 3\n",
        "an unknown option of a policy": "policies:\n  SoftModPolicy:\n    layers: 3\n",
        "a policy that is a list": "policies:\n  SoftModPolicy: [1]\n",
        "an unknown env argument": "default:\n  env_kwargs:\n    goal: fixed\n",
        "infinitely many steps": "default:\n  n_timesteps: .inf\n",
    }
    for text, content in texts.items():
        yield of_file(
            "hyperparameters",
            text,
            "mine.yml",
            content if isinstance(content, bytes) else content.encode(),
            lambda p: load_hyperparameters(str(p)),
        )
    for name in ("papers", "laptop.yaml", "no/where.yml", "sb3_softmod.nothing", "..", "nothing.at.all"):
        yield BadInput("hyperparameters", f"a file {name!r}", later(load_hyperparameters, name), "no file")
