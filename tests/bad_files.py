"""Bad files and paths for :mod:`bad_inputs`."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from bad_arguments import JUNK, SMALL, model, point_mass
from bad_inputs import BadInput, at, later
from point_mass import make_point_mass_env
from run_folders import write_run
from stable_baselines3 import PPO

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecNormalize, SoftModularNetwork
from sb3_softmod.callbacks import MultiTaskEvalCallback
from sb3_softmod.plots.curves import collect_curves
from sb3_softmod.plots.results import collect, results_table
from sb3_softmod.policies import MTMlpPolicy
from sb3_softmod.progress_file import ProgressFileCallback, read_progress
from sb3_softmod.routing_snapshots import RoutingSnapshots
from sb3_softmod.runs import find_runs, load_run
from sb3_softmod.task_evaluation import TaskEvaluation

Change = Callable[[dict[str, Any]], Any]


def every(rng: np.random.Generator) -> list[BadInput]:
    """All of them.

    :param rng: for what is random in them
    """
    return [*models(rng), *buffers(rng), *paths(), *weights(), *runs(rng), *hyperparameters()]


# ----------------------------------------------------------------------------------------- models and buffers


@cache
def _saved_model() -> bytes:
    file = io.BytesIO()
    model().save(file)
    return file.getvalue()


@cache
def _saved_buffer() -> bytes:
    file = io.BytesIO()
    model().save_replay_buffer(file)
    return file.getvalue()


def _entries() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved_model())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_data(other: dict[str, Any]) -> bytes:
    entries = _entries()
    data = {**json.loads(entries["data"]), **other}
    return _zipped({**entries, "data": json.dumps(data).encode()})


def _with_tensors(entry: str, change: Change) -> bytes:
    entries = _entries()
    content = th.load(io.BytesIO(entries[entry]), weights_only=True)
    change(content)
    return _zipped({**entries, entry: _torch(content)})


def _torch(content: Any) -> bytes:
    file = io.BytesIO()
    th.save(content, file)
    return file.getvalue()


def _pickled(value: Any) -> dict[str, Any]:
    return {":type:": "", ":serialized:": base64.b64encode(cloudpickle.dumps(value)).decode()}


def _of_file(family: str, text: str, name: str, content: bytes, run: Callable[[Path], Any]) -> BadInput:
    return BadInput(
        family, text, lambda folder: run(folder / name), name, lambda folder: (folder / name).write_bytes(content)
    )


def models(rng: np.random.Generator) -> Iterator[BadInput]:
    whole = _saved_model()
    bad: dict[str, bytes] = {"an empty file": b"", "text": b"no model", "a zip without entries": _zipped({})}
    for position in sorted(rng.choice(len(whole) - 1, 12, replace=False).tolist()):
        bad[f"a zip cut off after {position} bytes"] = whole[:position]
    for name, content in _entries().items():
        place = whole.index(content[:200]) + int(rng.integers(len(content)))
        bad[f"a wrong byte in {name}"] = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    for name in _entries():
        if name not in ("_stable_baselines3_version", "system_info.txt"):
            bad[f"a zip without {name}"] = _zipped({k: v for k, v in _entries().items() if k != name})
            bad[f"junk for {name}"] = _zipped({**_entries(), name: b"junk"})
    for text, data in (
        ("a list", b"[]"),
        ("a number", b"3"),
        ("an empty object", b"{}"),
        ("other text", b"\xff\xfe"),
        ("half an object", b'{"tau": '),
        ("a deep nest", b"[" * 100_000),
    ):
        bad[f"data is {text}"] = _zipped({**_entries(), "data": data})
    facts: list[tuple[str, Any]] = [
        ("tau", "ten"),
        ("gamma", 3),
        ("batch_size", 3),
        ("buffer_size", -1),
        ("num_tasks", 3),
        ("num_tasks", "ten"),
        ("learning_rate", []),
        ("loss_weighting", "alfa"),
        ("ent_coef", "manual"),
        ("policy_kwargs", []),
        ("policy_kwargs", {"layers": 3}),
        ("policy_kwargs", {"num_tasks": 3}),
        ("policy_kwargs", {"net_arch": [5], "num_tasks": 2}),
        ("overlap", "yes"),
        ("seed", "ten"),
        ("gradient_steps", None),
    ]
    for name, value in facts:
        bad[f"{name} of the file is {value}"] = _with_data({name: value})
    pickles: list[tuple[str, Any]] = [
        ("no base64", {":serialized:": "%%%"}),
        ("no pickle", {":serialized:": base64.b64encode(b"junk").decode()}),
        ("a number", {":serialized:": 3}),
        ("a pickle of another thing", _pickled(3)),
        ("half a pickle", {":serialized:": base64.b64encode(cloudpickle.dumps(PPO)[:-3]).decode()}),
        ("a pickle of a class that is gone", {":serialized:": base64.b64encode(b"cnowhere\nThing\n.").decode()}),
        ("a pickle of another policy", _pickled(PPO.policy_aliases["MlpPolicy"])),
    ]
    for text, value in pickles:
        for name in ("policy_class", "observation_space", "action_space"):
            bad[f"{name} of the file is {text}"] = _with_data({name: value})
    bad["weights of other shapes"] = _with_tensors("policy.pth", lambda d: d.update({k: th.zeros(3, 3) for k in d}))
    bad["weights under other names"] = _with_tensors("policy.pth", lambda d: d.update(more=d.pop(next(iter(d)))))
    bad["no weights"] = _with_tensors("policy.pth", lambda d: d.clear())
    bad["one temperature"] = _with_tensors("pytorch_variables.pth", lambda d: d.update(log_ent_coef=th.zeros(1)))
    bad["words for temperatures"] = _with_tensors("pytorch_variables.pth", lambda d: d.update(log_ent_coef="ten"))
    bad["another optimizer"] = _with_tensors("actor.optimizer.pth", lambda d: d["param_groups"].clear())
    bad["a pickle for weights"] = _zipped({**_entries(), "policy.pth": pickle.dumps({"a": 1})})
    ppo = io.BytesIO()
    PPO("MlpPolicy", make_point_mass_env(2), n_steps=8, batch_size=8, device="cpu").save(ppo)
    bad["a model of PPO"] = ppo.getvalue()
    for text, content in bad.items():
        yield _of_file("model files", text, "model.zip", content, lambda p: MultiTaskSAC.load(p, env=point_mass()))
        pickled = "_space of the file" in text or "policy_class of the file" in text
        ours = any(text.startswith(f"{name} of the file") for name in SMALL) or "a model of PPO" in text
        if not (pickled or ours or text.startswith(("buffer_size", "overlap", "seed"))):  # these are not read
            yield _of_file("model files", f"safe=True: {text}", "model.zip", content, _load_safely)


def _load_safely(path: Path) -> Any:
    return MultiTaskSAC.load(path, env=point_mass(), safe=True, policy="MTMlpPolicy", **SMALL)


def buffers(rng: np.random.Generator) -> Iterator[BadInput]:
    whole = _saved_buffer()
    bad: dict[str, bytes] = {"an empty file": b"", "text": b"no buffer", "a zip": _zipped({"a": b""})}
    for position in sorted(rng.choice(len(whole) - 1, 12, replace=False).tolist()):
        bad[f"a pickle cut off after {position} bytes"] = whole[:position]
    for text, value in (("a number", 3), ("a list", [1]), ("a model's name", "MultiTaskSAC")):
        bad[f"a pickle of {text}"] = pickle.dumps(value)
    other = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(4), **{**SMALL, "batch_size": 4})
    plain = io.BytesIO()
    other.save_replay_buffer(plain)
    bad["a buffer of other tasks"] = plain.getvalue()
    state = pickle.loads(whole).__getstate__()
    for name in ("_ends", "_rows", "added_per_task", "storage_device", "capacity_per_task"):
        bad[f"a buffer without {name}"] = pickle.dumps(_Restored({k: v for k, v in state.items() if k != name}))
    bad["a buffer with other rows"] = pickle.dumps(_Restored({**state, "_rows": [np.zeros((3, 3))]}))
    for text, content in bad.items():
        yield _of_file("buffer files", text, "buffer.pkl", content, lambda p: model().load_replay_buffer(p))
    statistics = pickle.dumps(MultiTaskVecNormalize(make_point_mass_env(3)))
    bad |= {"statistics of other tasks": statistics, "half of the statistics": statistics[:200]}
    for text, content in bad.items():
        yield _of_file("buffer files", f"as statistics: {text}", "statistics.pkl", content, _load_statistics)
        if not text.startswith(("a buffer", "statistics")):
            yield _of_file("buffer files", f"as a policy: {text}", "policy.pth", content, MTMlpPolicy.load)


def _load_statistics(path: Any) -> Any:
    return MultiTaskVecNormalize.load(path, point_mass())


class _Restored:
    """Pickled as a replay buffer of any state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return _restore, (self.state,)


def _restore(state: dict[str, Any]) -> Any:
    buffer = object.__new__(MultiTaskReplayBuffer)
    buffer.__setstate__(state)
    return buffer


# ------------------------------------------------------------------------------------------------------- paths


def paths() -> Iterator[BadInput]:
    evaluation = TaskEvaluation(["a"], [1], [0.5], [0.5], [1.0], [1.0])
    snapshots = RoutingSnapshots(np.zeros(0, int), ["a"], np.zeros((0, 1)), [np.zeros((0, 1, 2, 2))])
    reading: dict[str, Callable[[Any], Any]] = {
        "load": MultiTaskSAC.load,
        "set_parameters": lambda p: model().set_parameters(p),
        "load_replay_buffer": lambda p: model().load_replay_buffer(p),
        "MTMlpPolicy.load": MTMlpPolicy.load,
        "MultiTaskVecNormalize.load": _load_statistics,
        "from_official": SoftModularNetwork.from_official,
        "TaskEvaluation.from_json": TaskEvaluation.from_json,
        "RoutingSnapshots.load": RoutingSnapshots.load,
        "load_run": load_run,
        "find_runs": find_runs,
        "read_progress": lambda p: read_progress(p, ["ent_coef"], ["a"]),
        "a hyperparameter file": _load_config,
    }
    writing: dict[str, Callable[[Any], Any]] = {
        "save": lambda p: model().save(p),
        "save_replay_buffer": lambda p: model().save_replay_buffer(p),
        "MultiTaskVecNormalize.save": MultiTaskVecNormalize(point_mass()).save,
        "to_json": evaluation.to_json,
        "RoutingSnapshots.save": snapshots.save,
        "ProgressFileCallback": _begin,
        "MultiTaskEvalCallback": lambda p: MultiTaskEvalCallback(point_mass(), log_path=p).init_callback(model()),
    }

    def make(folder: Path) -> None:
        (folder / "folder.zip").mkdir()
        (folder / "folder.pkl").mkdir()
        (folder / "file").write_text("a file")

    places: dict[str, Any] = {
        "with a null character": "a\0b.zip",
        "of a name of 5000 letters": "x" * 5000,
        "that is a number": 3.5,
        "that is None": None,
        "that is a list": ["a"],
    }
    for call, does in {**reading, **writing}.items():
        for place, path in places.items():
            if (call, place) not in {
                ("a hyperparameter file", "that is None"),
                ("to_json", "that is None"),
                ("MultiTaskEvalCallback", "that is None"),
                ("from_official", "that is None"),
                ("from_official", "that is a number"),
                ("from_official", "that is a list"),
            }:
                yield BadInput("paths", f"{call}: a path {place}", at(does, path), "", make)
    for call, does in reading.items():
        for place, name in (("that is not there", "nothing.zip"), ("below a file", "file/model.zip")):
            yield BadInput("paths", f"{call}: a path {place}", at(does, name), "", make)
        if call not in ("load_run", "find_runs", "read_progress"):
            yield BadInput("paths", f"{call}: a folder", at(does, "folder.zip"), "folder.zip", make)
    for call, does in writing.items():
        yield BadInput("paths", f"{call}: a path below a file", at(does, "file/out.zip"), "", make)
        yield BadInput("paths", f"{call}: in /proc", later(does, Path("/proc/nothing/here.zip")), "/proc", make)
        if not call.endswith("Callback"):
            yield BadInput("paths", f"{call}: a folder", at(does, "folder.pkl"), "folder.pkl", make)


def _begin(path: Any) -> None:
    callback = ProgressFileCallback(path)
    callback.init_callback(model())
    callback.on_training_start({}, {})


def _load_config(path: Any) -> Any:
    from sb3_softmod.zoo.configs import find_config, load_config

    return load_config(find_config(path), MultiTaskSAC)


# ----------------------------------------------------------------------------------------- the authors' weights


def weights() -> Iterator[BadInput]:
    options: dict[str, Any] = dict(variant="official", embedding_dim=4, module_dim=4, routing_dim=4)

    official = SoftModularNetwork(3, 2, 2, **options).to_official()
    for name in official:
        changes: dict[str, dict[str, Any]] = {
            "is missing": {key: tensor for key, tensor in official.items() if key != name},
            "has one axis more": {**official, name: official[name][None]},
            "holds NaN": {**official, name: official[name] * np.nan},
            "is a word": {**official, name: "ten"},
        }
        for text, other in changes.items():
            yield BadInput("weights", f"{name} {text}", later(SoftModularNetwork.from_official, other), "arameter")
    for text, content in (
        ("text", b"no weights"),
        ("nothing", b""),
        ("half a file", _torch(official)[:300]),
        ("a list", _torch([1, 2])),
        ("a pickle of a class", pickle.dumps(PPO)),
        ("a zip", _zipped({"a": b"b"})),
        ("a function", _torch({"a": np.ones})),
    ):
        yield _of_file("weights", f"a file of {text}", "w.pth", content, SoftModularNetwork.from_official)
    for what, value in JUNK.items():
        if what != "an array":
            yield BadInput("weights", f"the parameters are {what}", later(_from_official, value), "")


def _from_official(value: Any) -> Any:
    return SoftModularNetwork.from_official(value if not isinstance(value, str) else {"base.fc0.weight": value})


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
        yield _of_file(
            "run folders", f"an evaluation: {text}", "e.json", json.dumps(content).encode(), TaskEvaluation.from_json
        )
    for text, content in texts.items():
        yield _of_file("run folders", f"an evaluation {text}", "e.json", content, TaskEvaluation.from_json)
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
        yield _of_file("run folders", f"snapshots {text}", "routing.npz", content, RoutingSnapshots.load)
    for text, content in (
        ("empty", b""),
        ("of no text", b"\xff\x00\xfe\n"),
        ("without steps", b"ent_coef/a\n1\n"),
        ("without the metric", b"time/total_timesteps\n1\n"),
        ("without a row", b"time/total_timesteps,ent_coef/a\n"),
        ("of words", b"time/total_timesteps,ent_coef/a\nfew,much\n"),
        ("with a huge field", b"time/total_timesteps,ent_coef/a\n" + b"1" * 200_000 + b",1\n"),
    ):
        yield _of_file(
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
        yield _of_file(
            "hyperparameters",
            text,
            "mine.yml",
            content if isinstance(content, bytes) else content.encode(),
            lambda p: _load_config(str(p)),
        )
    for name in ("papers", "laptop.yaml", "no/where.yml", "sb3_softmod.nothing", "..", "nothing.at.all"):
        yield BadInput("hyperparameters", f"a file {name!r}", later(_load_config, name), "no file")
