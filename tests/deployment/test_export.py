"""A policy as a file acts as the model does, on raw observations."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from point_mass import PointMass, make_point_mass_env
from run_folders import write_run
from small_networks import TINY
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_softmod import (
    ConfigurationError,
    FileError,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    NonFiniteError,
    TaskEnv,
    pretrained,
)
from sb3_softmod.cli import main
from sb3_softmod.methods import METHODS
from sb3_softmod.policies import POLICIES

onnxruntime = pytest.importorskip("onnxruntime")

SLOW = pytest.mark.slow
NAMES = [f"corner-{i}" for i in range(4)]


def make(policy: str = "SoftModPolicy", normalized: str | None = "pooled", **options: Any) -> MultiTaskSAC:
    """A model that saw a few observations, some of which hardly vary."""
    env: Any = make_point_mass_env()
    if normalized is not None:
        env = MultiTaskVecNormalize(env, obs_statistics=normalized)  # type: ignore[arg-type]
        env.reset()
        rng = np.random.default_rng(0)
        for rms in env.obs_rms:
            rms.update(np.array([0.3, 0.7]) + np.array([0.4, 1e-6]) * rng.normal(size=(50, 2)))
    policy_kwargs = TINY.get(policy, dict(net_arch=[6, 5]))
    return MultiTaskSAC(policy, env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **options)


def observations(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw ones around what :func:`make` saw, and one-hot tasks."""
    rng = np.random.default_rng(rows)
    raw = (np.array([0.3, 0.7]) + np.array([0.4, 1e-5]) * rng.normal(size=(rows, 2))).astype(np.float32)
    return raw, np.eye(4, dtype=np.float32)[rng.integers(4, size=rows)]


def act_by_hand(model: MultiTaskSAC, raw: np.ndarray, task: np.ndarray) -> np.ndarray:
    """By ``predict``, on what the training env would have sent."""
    whole = np.concatenate([raw, task], 1)
    normalize = model.get_vec_normalize_env()
    return model.predict(whole if normalize is None else normalize.normalize_obs(whole), deterministic=True)[0]


def run_onnx(path: Path, raw: np.ndarray, task: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return session.run(["action"], {"observation": raw, "task": task})[0]


#: The others, in the size of their methods, are among the slow tests.
FAST = ("SoftModPolicy", "SingleTaskPolicy", "BROPolicy")


@pytest.mark.parametrize("policy", [each if each in FAST else pytest.param(each, marks=SLOW) for each in POLICIES])
def test_onnx_acts_as_predict_does(policy: str, tmp_path: Path) -> None:
    model = make(policy)
    path = model.export(tmp_path / "policy.onnx")
    for rows in (1, 7):
        raw, task = observations(rows)
        expected = act_by_hand(model, raw, task)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(run_onnx(path, raw, task), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalized", [None, "pooled", "per-task"])
@pytest.mark.parametrize("policy", [*POLICIES, "MlpPolicy"])
def test_torchscript_acts_as_predict_does(policy: str, normalized: str | None, tmp_path: Path) -> None:
    model = make(policy, normalized)
    path = model.export(tmp_path / "policy.pt")
    files = {"policy.json": ""}
    loaded = th.jit.load(path, _extra_files=files)
    assert json.loads(json.loads(files["policy.json"])["task_names"]) == NAMES
    for rows in (1, 7):
        raw, task = observations(rows)
        acts = loaded(th.as_tensor(raw), th.as_tensor(task)).numpy()
        np.testing.assert_allclose(acts, act_by_hand(model, raw, task), rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalized", ["pooled", "per-task"])
def test_shares_of_several_tasks(normalized: str, tmp_path: Path) -> None:
    model = make("MTMlpPolicy", normalized)
    raw, _ = observations(3)
    shares = np.array([[0.25, 0, 0, 0.75], [0.6, 0.4, 0, 0], [0, 0.3, 0.3, 0.4]], np.float32)
    acts = run_onnx(model.export(tmp_path / "policy.onnx"), raw, shares)
    np.testing.assert_allclose(acts, model.act(raw, shares), rtol=0, atol=1e-5)
    assert np.abs(acts - model.act(raw, np.eye(4, dtype=np.float32)[shares.argmax(1)])).max() > 1e-3


@pytest.mark.parametrize("tune", ["routing", "heads", "all"])
def test_an_adapted_policy(tune: Any, tmp_path: Path) -> None:
    """Rows of old and of new tasks, in batches of one kind and of both."""
    new = DummyVecEnv([partial(TaskEnv, gym.wrappers.TimeLimit(PointMass(i), 5), i, ["e", "f"]) for i in range(2)])
    model = make("SoftModPolicy", "per-task").adapt(new, tune=tune, init="fresh")
    script = th.jit.load(model.export(tmp_path / "policy.pt"))
    onnx = model.export(tmp_path / "policy.onnx")
    for ids in ([4, 5, 4], [0, 3, 1], [5, 0, 4]):
        raw, _ = observations(3)
        task = np.eye(6, dtype=np.float32)[ids]
        expected = model.act(raw, task)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(script(th.as_tensor(raw), th.as_tensor(task)).numpy(), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(run_onnx(onnx, raw, task), expected, rtol=0, atol=1e-5)


@SLOW
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_its_size(method: str, tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(), obs_statistics="per-task", norm_reward=False)
    env.reset()
    model = METHODS[method].make(env, buffer_size=100, seed=0, device="cpu")
    path = model.export(tmp_path / "policy.onnx")
    raw, task = observations(7)
    np.testing.assert_allclose(run_onnx(path, raw, task), act_by_hand(model, raw, task), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("normalized", "opset"), [("per-task", 20), (None, 23)])
def test_opsets_and_normalisations(normalized: str | None, opset: int, tmp_path: Path) -> None:
    import onnx

    model = make("HardRoutingPolicy", normalized)
    path = model.export(tmp_path / "policy.onnx", opset=opset)
    described = onnx.load(path)
    onnx.checker.check_model(described, full_check=True)
    assert [each.version for each in described.opset_import if not each.domain] == [opset]
    assert [each.name for each in described.graph.input] == ["observation", "task"]
    assert [each.type.tensor_type.shape.dim[0].dim_param for each in described.graph.input] == ["batch", "batch"]
    for rows in (1, 5):
        raw, task = observations(rows)
        np.testing.assert_allclose(run_onnx(path, raw, task), act_by_hand(model, raw, task), rtol=0, atol=1e-5)


def test_the_model_that_comes_with_the_package(tmp_path: Path) -> None:
    model = pretrained("MT10", device="cpu")
    path = model.export(tmp_path / "new" / "mt10.onnx")
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["task_names"]) == model.task_names
    rng = np.random.default_rng(0)
    statistics = model.observation_statistics()
    assert statistics is not None
    mean, std = statistics["obs_rms"][0].mean, np.sqrt(statistics["obs_rms"][0].var)
    raw = (mean + std * rng.normal(size=(10, 39))).astype(np.float32)
    acts = run_onnx(path, raw, np.eye(10, dtype=np.float32))
    assert np.ptp(acts) > 1
    np.testing.assert_allclose(acts, model.act(raw, model.task_names), rtol=0, atol=1e-5)


def test_actions_are_those_of_the_action_space(tmp_path: Path) -> None:
    """The network's range is [-1, 1], whatever that of the actions."""
    model = make(normalized=None)
    model.action_space = model.policy.action_space = spaces.Box(
        np.array([-1, 0], np.float32), np.array([3, 0.5], np.float32)
    )
    raw, task = observations(50)
    raw *= 100
    path = model.export(tmp_path / "policy.pt")
    acts = th.jit.load(path)(th.as_tensor(raw), th.as_tensor(task)).numpy()
    np.testing.assert_allclose(acts, act_by_hand(model, raw, task), rtol=0, atol=1e-5)
    assert (acts[:, 1] >= 0).all()
    assert (acts[:, 1] <= 0.5).all()
    assert acts[:, 0].max() > 1


@pytest.mark.parametrize("normalized", [None, "pooled", "per-task"])
def test_act_is_predict_on_normalised_observations(normalized: str | None) -> None:
    model = make(normalized=normalized)
    raw, task = observations(6)
    expected = act_by_hand(model, raw, task)
    names = [NAMES[each] for each in task.argmax(1)]
    np.testing.assert_array_equal(model.act(raw, names), expected)
    np.testing.assert_array_equal(model.act(raw, task), expected)
    np.testing.assert_array_equal(model.act(raw[0].tolist(), names[0]), act_by_hand(model, raw[:1], task[:1])[0])
    same = np.eye(4, dtype=np.float32)[[2] * 6]
    np.testing.assert_array_equal(model.act(raw, "corner-2"), act_by_hand(model, raw, same))
    assert not np.array_equal(model.act(raw, names, deterministic=False), expected)


def test_act_of_a_loaded_model(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model")
    raw, task = observations(3)
    loaded = MultiTaskSAC.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.act(raw, task), act_by_hand(model, raw, task))


@pytest.mark.parametrize(
    ("observation", "task", "message"),
    [
        ([0.1, 0.2], "corner-9", "Unknown task 'corner-9': did you mean 'corner-3'"),
        ([0.1, 0.2, 0.3], "corner-0", r"a raw observation \(2,\) or a batch of them \(n, 2\), without the task"),
        ([0.1, 0.2], ["corner-0"], r"A task is a name, or an array \(4,\), not \['corner-0'\]"),
        ([[0.1, 0.2]], ["corner-0", "corner-1"], r"A task is a name or 1 of them, or an array \(4,\) or \(1, 4\)"),
        ([0.1, 0.2], 3, r"A task is a name, or an array \(4,\), not 3"),
        ([0.1, 0.2], [0.0, 0.0, 0.0, 2.0], "ends in no task"),
        ([0.1, None], "corner-0", "holds NaN or infinity"),
        ([0.1, "x"], "corner-0", "must be an array of numbers"),
        ([], "corner-0", r"not one of shape \(0,\)"),
    ],
)
def test_act_refuses(observation: Any, task: Any, message: str) -> None:
    with pytest.raises((ConfigurationError, NonFiniteError), match=message):
        make().act(observation, task)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make()
    folder = write_run(tmp_path, "softmod_deep", 1, {10: (0, 1)})
    model.save(folder / "MT10-Fixed.zip")
    out = folder / "policy.pt"
    assert main(["export", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    raw, task = observations(3)
    acts = th.jit.load(out)(th.as_tensor(raw), th.as_tensor(task)).numpy()
    np.testing.assert_allclose(acts, act_by_hand(model, raw, task), rtol=0, atol=1e-5)
    assert main(["export", str(folder), "--best"]) == 2
    assert "no evaluation took place yet" in capsys.readouterr().err


def test_export_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    with pytest.raises(
        ConfigurationError, match=r"ends in \.onnx \(ONNX\) or \.pt \(TorchScript\), not to 'a\.tflite'"
    ):
        model.export(tmp_path / "a.tflite")
    with pytest.raises(ConfigurationError, match=r"opset is for \.onnx, and a\.pt is TorchScript"):
        model.export(tmp_path / "a.pt", opset=18)
    with pytest.raises(ConfigurationError, match="opset must be an integer, not 'new'"):
        model.export(tmp_path / "a.onnx", opset="new")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="file is no folder"):
        model.export(tmp_path / "file" / "a.onnx")
    (tmp_path / "a.onnx").write_text("of before")
    with pytest.raises(ConfigurationError, match="opset 99"):
        model.export(tmp_path / "a.onnx", opset=99)
    assert (tmp_path / "a.onnx").read_text() == "of before"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigurationError, match=r"ONNX needs onnxscript: pip install 'sb3-softmod\[onnx\]'"):
        model.export(tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "file"]
