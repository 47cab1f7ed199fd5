"""Bad files of models, buffers and weights, and bad paths, for :mod:`bad_inputs`."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from bad_inputs import BadInput, at, later, of_file
from bad_run_folders import load_hyperparameters
from bad_values import JUNK, SMALL, model, point_mass
from point_mass import make_point_mass_env
from stable_baselines3 import PPO

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecNormalize, SoftModularNetwork
from sb3_softmod.evaluation import MultiTaskEvalCallback, TaskEvaluation
from sb3_softmod.policies import MTMlpPolicy
from sb3_softmod.routing.snapshots import RoutingSnapshots
from sb3_softmod.runs.progress import ProgressFileCallback, read_progress
from sb3_softmod.runs.run import find_runs, load_run

Change = Callable[[dict[str, Any]], Any]


def every(rng: np.random.Generator) -> list[BadInput]:
    """All of them.

    :param rng: for what is random in them
    """
    return [*models(rng), *buffers(rng), *paths(), *weights()]


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
        yield of_file("model files", text, "model.zip", content, lambda p: MultiTaskSAC.load(p, env=point_mass()))
        pickled = "_space of the file" in text or "policy_class of the file" in text
        ours = any(text.startswith(f"{name} of the file") for name in SMALL) or "a model of PPO" in text
        if not (pickled or ours or text.startswith(("buffer_size", "overlap", "seed"))):  # these are not read
            yield of_file("model files", f"safe=True: {text}", "model.zip", content, _load_safely)


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
        yield of_file("buffer files", text, "buffer.pkl", content, lambda p: model().load_replay_buffer(p))
    statistics = pickle.dumps(MultiTaskVecNormalize(make_point_mass_env(3)))
    bad |= {"statistics of other tasks": statistics, "half of the statistics": statistics[:200]}
    for text, content in bad.items():
        yield of_file("buffer files", f"as statistics: {text}", "statistics.pkl", content, _load_statistics)
        if not text.startswith(("a buffer", "statistics")):
            yield of_file("buffer files", f"as a policy: {text}", "policy.pth", content, MTMlpPolicy.load)


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
    for_evaluation = make_point_mass_env(2)
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
        "a hyperparameter file": load_hyperparameters,
    }
    writing: dict[str, Callable[[Any], Any]] = {
        "save": lambda p: model().save(p),
        "save_replay_buffer": lambda p: model().save_replay_buffer(p),
        "MultiTaskVecNormalize.save": MultiTaskVecNormalize(point_mass()).save,
        "to_json": evaluation.to_json,
        "RoutingSnapshots.save": snapshots.save,
        "ProgressFileCallback": _begin,
        "MultiTaskEvalCallback": lambda p: MultiTaskEvalCallback(for_evaluation, log_path=p).init_callback(model()),
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
        yield of_file("weights", f"a file of {text}", "w.pth", content, SoftModularNetwork.from_official)
    for what, value in JUNK.items():
        if what != "an array":
            yield BadInput("weights", f"the parameters are {what}", later(_from_official, value), "")


def _from_official(value: Any) -> Any:
    return SoftModularNetwork.from_official(value if not isinstance(value, str) else {"base.fc0.weight": value})
