"""Models of others: ``load(safe=True)`` takes the weights and runs nothing, and what does run code says so."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env

from sb3_softmod import (
    ConfigurationError,
    FileError,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    SoftModSAC,
    SoftModularNetwork,
)
from sb3_softmod.envs.normalization_statistics import plain_statistics
from sb3_softmod.policies import POLICIES
from sb3_softmod.saving.models import saved_facts
from sb3_softmod.saving.plain_models import save_plain

M = 3
SMALL: dict[str, Any] = dict(batch_size=2 * M, learning_starts=2 * M, buffer_size=300, seed=0)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def trained(policy: str = "SoftModPolicy", env: Any = None, **policy_kwargs: Any) -> MultiTaskSAC:
    kwargs = policy_kwargs or dict(embedding_dim=6, module_dim=4)
    model = MultiTaskSAC(policy, env or make_point_mass_env(M), policy_kwargs=kwargs, tau=0.01, **SMALL)
    return model.learn(20 * M)


def tensors(model: MultiTaskSAC) -> dict[str, th.Tensor]:
    found = {
        f"{name}.{key}": value
        for name, state in model.get_parameters().items()
        for key, value in state.items()
        if isinstance(value, th.Tensor)
    }
    for name in ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer"):
        for index, state in model.get_parameters()[name]["state"].items():
            found |= {f"{name}.{index}.{key}": th.as_tensor(value) for key, value in state.items()}
    assert model.log_ent_coef is not None
    return {**found, "log_ent_coef": model.log_ent_coef.detach()}


def trapped(path: Path, trap: Path, **tensors: Any) -> list[str]:
    """Put the trap wherever a file of a model may hold a pickle.

    :param tensors: further entries to replace
    :return: the facts that hold one now
    """
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = base64.b64encode(pickle.dumps(Trap(trap))).decode()
    facts = json.loads(entries["data"])
    names = [name for name, fact in facts.items() if isinstance(fact, dict) and ":serialized:" in fact]
    for name in [*names, "policy_kwargs", "learning_rate", "normalization_of_theirs"]:
        facts[name] = {":type:": "", ":serialized:": pickled}
    entries["data"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**entries, **tensors}.items():
            archive.writestr(name, content)
    return names


def with_fact(path: Path, **changed: Any) -> None:
    """Change facts of a file."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["data"] = json.dumps({**json.loads(entries["data"]), **changed}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def load_safely(path: Path, **kwargs: Any) -> MultiTaskSAC:
    arguments: dict[str, Any] = dict(
        env=make_point_mass_env(M), policy="SoftModPolicy", policy_kwargs=dict(embedding_dim=6, module_dim=4)
    )
    return MultiTaskSAC.load(path, safe=True, **{**arguments, **kwargs})


def test_safe_loading_runs_nothing(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model.zip")
    names = trapped(tmp_path / "model.zip", tmp_path / "sprung")
    assert {"policy_class", "observation_space", "action_space"} <= set(names)

    loaded = load_safely(tmp_path / "model.zip", **SMALL)
    assert not (tmp_path / "sprung").exists()
    expected = tensors(model)
    assert {name: th.equal(value, expected[name]) for name, value in tensors(loaded).items()} == dict.fromkeys(
        expected, True
    )

    with pytest.raises(FileError):
        MultiTaskSAC.load(tmp_path / "model.zip")
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_trap_among_the_weights_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    th.save({"weight": Trap(tmp_path / "sprung")}, file)
    for entry in ("policy.pth", "actor.optimizer.pth", "pytorch_variables.pth", "another.pth"):
        trained().save(tmp_path / "model.zip")
        trapped(tmp_path / "model.zip", tmp_path / "sprung", **{entry: file.getvalue()})
        with pytest.raises(FileError, match=r"model\.zip is broken"):
            load_safely(tmp_path / "model.zip")
    model = trained()
    with pytest.raises(FileError, match=r"model\.zip is broken"):
        model.set_parameters(tmp_path / "model.zip")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("weights", [io.BytesIO, pickle.dumps])
def test_official_weights_run_nothing(weights: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    trap = {"last.weight": Trap(tmp_path / "sprung")}
    if weights is pickle.dumps:
        path.write_bytes(pickle.dumps(trap))
    else:
        th.save(trap, path)
    with pytest.raises(FileError, match=r"theirs\.pth is broken, or no file of weights"):
        SoftModularNetwork.from_official(path)
    assert not (tmp_path / "sprung").exists()


def test_a_learning_rate_that_is_pickled_goes_on(tmp_path: Path) -> None:
    """As RL Zoo's, which makes a schedule of any."""
    model = MultiTaskSAC(
        "MTMlpPolicy", make_point_mass_env(M), policy_kwargs=dict(net_arch=[4]), learning_rate=lambda _: 0.01, **SMALL
    )
    model.learn(20 * M).save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), safe=True, policy="MTMlpPolicy")
    assert loaded.lr_schedule(1.0) == pytest.approx(0.01)
    loaded.learn(5 * M, reset_num_timesteps=False)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_learning_rate_that_came_down_to_nothing(tmp_path: Path) -> None:
    env = make_point_mass_env(M)
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), **SMALL)
    model = MultiTaskSAC("MTMlpPolicy", env, learning_rate=lambda left: 1e-9 + 0.01 * (left > 0.5), **kwargs)
    model.learn(20 * M).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="had come down to 1e-09 by a schedule.* pass learning_rate to go on"):
        MultiTaskSAC.load(tmp_path / "model", env, safe=True, policy="MTMlpPolicy")
    save_plain(model, tmp_path / "plain.zip")
    assert MultiTaskSAC.load(tmp_path / "plain.zip", env).learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize("policy", POLICIES)
def test_safe_loading_of_every_policy(policy: str, tmp_path: Path) -> None:
    """What the file says in plain text need not be passed."""
    options: dict[str, dict[str, Any]] = {
        "SoftModPolicy": dict(module_dim=4, embedding_dim=6),
        "HardRoutingPolicy": dict(module_dim=4, embedding_dim=6),
        "BROPolicy": dict(width=6),
    }
    model = trained(policy, **options.get(policy, dict(net_arch=[6], n_critics=3)))
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", make_point_mass_env(M), safe=True, policy=policy)
    assert (loaded.tau, loaded.batch_size, loaded.num_timesteps) == (0.01, 2 * M, 20 * M)
    obs = np.asarray(make_point_mass_env(M).reset())
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.learn(20 * M, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40 * M


def test_what_the_caller_passes_counts(tmp_path: Path) -> None:
    model = SoftModSAC(
        "MTMlpPolicy", make_point_mass_env(M), ent_coef=[0.1, 0.2, 0.3], policy_kwargs=dict(net_arch=[4])
    )
    model.save(tmp_path / "model")
    loaded = SoftModSAC.load(
        tmp_path / "model", make_point_mass_env(M), safe=True, policy="MTMlpPolicy", gamma=0.5, learning_rate=0.1
    )
    assert (loaded.gamma, loaded.learning_rate, loaded.loss_weighting) == (0.5, 0.1, "alpha")
    assert th.equal(loaded.ent_coef_tensor, th.tensor([0.1, 0.2, 0.3]))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    trained().save(tmp_path / "model.zip")
    wider = dict(embedding_dim=6, module_dim=5)
    with pytest.raises(ConfigurationError, match=r"model\.zip does not go with .*, which differs in module_dim"):
        load_safely(tmp_path / "model.zip", policy_kwargs=wider)
    trained("MTMlpPolicy", net_arch=[6]).save(tmp_path / "perceptron.zip")
    with pytest.raises(ConfigurationError, match=r"is missing.* and \d+ more"):
        load_safely(tmp_path / "perceptron.zip", policy="MultiHeadPolicy", policy_kwargs=dict(net_arch=[6]))
    with pytest.raises(ConfigurationError, match="saved for 3 tasks, but the env has 2"):
        load_safely(tmp_path / "model.zip", env=make_point_mass_env(2))
    for name in ("env", "policy"):
        with pytest.raises(ConfigurationError, match=rf"safe=True\) needs {name}=\.\.\.: in the file it is pickled"):
            load_safely(tmp_path / "model.zip", **{name: None})
    with pytest.raises(ConfigurationError, match=r"policy=\.\.\.\) is for safe=True"):
        MultiTaskSAC.load(tmp_path / "model.zip", policy="SoftModPolicy")


@pytest.mark.parametrize("kind", ["pooled", "per-task"])
def test_statistics_of_the_observations_are_plain(kind: Any, tmp_path: Path) -> None:
    """To the last bit, in an env of the caller that has others, or none."""
    env = MultiTaskVecNormalize(make_point_mass_env(M), kind, gamma=0.9, clip_obs=np.inf)
    trained(env=env).save(tmp_path / "model.zip")
    assert "serialized" not in str(saved_facts(tmp_path / "model.zip")["normalization"])
    for own in (make_point_mass_env(M), MultiTaskVecNormalize(make_point_mass_env(M))):
        found = load_safely(tmp_path / "model.zip", env=own).get_vec_normalize_env()
        assert isinstance(found, MultiTaskVecNormalize)
        assert pickle.dumps(plain_statistics(found.statistics())) == pickle.dumps(plain_statistics(env.statistics()))
    loaded = MultiTaskSAC.load(tmp_path / "model.zip")
    assert loaded.normalization is not None
    np.testing.assert_array_equal(loaded.normalization["obs_rms"][-1].mean, env.obs_rms[-1].mean)
    loaded.save(tmp_path / "again.zip")
    facts = [saved_facts(tmp_path / name)["normalization"] for name in ("model.zip", "again.zip")]
    assert facts[0] == facts[1]


def test_statistics_that_an_earlier_version_pickled(tmp_path: Path) -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(M))
    trained(env=env).save(tmp_path / "model.zip")
    with_fact(tmp_path / "model.zip", normalization={":type:": "dict", ":serialized:": ""})
    with pytest.raises(ConfigurationError, match="whose statistics an earlier version pickled: pass an env"):
        load_safely(tmp_path / "model.zip")
    assert load_safely(tmp_path / "model.zip", env=env).get_vec_normalize_env() is env


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"obs_rms": []}, "obs_rms of the statistics are not 1 finite means"),
        ({"ret_rms": [{"mean": 0.0, "var": 1.0, "count": "many"}] * M}, "ret_rms of the statistics are no means"),
        ({"obs_rms": [{"mean": [0.0], "var": [float("nan")], "count": 1.0}]}, "are not 1 finite means"),
        ({"obs_rms": [{"mean": [0.0], "var": [1.0], "count": 1.0}]}, r"of the shape \(1,\), but those of the env"),
        ({"clip_obs": "much"}, "clip_obs of the statistics must be a number"),
        ({"more": 1}, "statistics of the observations are incomplete"),
    ],
)
def test_broken_statistics(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained(env=MultiTaskVecNormalize(make_point_mass_env(M))).save(tmp_path / "model.zip")
    facts = saved_facts(tmp_path / "model.zip")["normalization"]
    with_fact(tmp_path / "model.zip", normalization={**facts, **wrong})
    with pytest.raises(ConfigurationError, match=message):
        load_safely(tmp_path / "model.zip")


def test_facts_are_read_without_running_anything(tmp_path: Path) -> None:
    trained().save(tmp_path / "model.zip")
    trapped(tmp_path / "model.zip", tmp_path / "sprung")
    facts = saved_facts(tmp_path / "model.zip")
    assert (facts["num_tasks"], facts["tau"]) == (M, 0.01)
    with pytest.raises(ConfigurationError, match="saved for 3 tasks, but the env has 2"):
        MultiTaskSAC.load(tmp_path / "model.zip", env=make_point_mass_env(2))
    assert not (tmp_path / "sprung").exists()
