"""Models that come with the package: without pickles, ready to act, to be evaluated, and to go on learning."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from small_networks import TINY

import sb3_softmod
from sb3_softmod import ConfigurationError, FileError, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC, save_pretrained
from sb3_softmod import pretrained as load_pretrained
from sb3_softmod.algorithm import pretrained
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.policies import POLICIES
from sb3_softmod.saving.models import saved_facts

M = 3
TASKS = [f"corner-{i}" for i in range(M)]
CARD = {"task_set": "MT3", "env_kwargs": {"seed": 4}, "success": dict.fromkeys(TASKS, 0.5)}


def trained(policy: str = "SoftModPolicy", **kwargs: Any) -> MultiTaskSAC:
    env = MultiTaskVecNormalize(make_point_mass_env(M), gamma=0.9)
    network = dict(TINY[policy], n_critics=3)
    small: dict[str, Any] = dict(batch_size=2 * M, learning_starts=2 * M, buffer_size=300, seed=0, device="cpu")
    model = SoftModSAC(policy, env, policy_kwargs=network, **{**small, **kwargs})
    return model.learn(20 * M)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path


def test_the_policy_that_comes_with_the_package() -> None:
    """It solves its tasks, with the goals of its training."""
    found = evaluate_tasks(load_pretrained("MT10", device="cpu"), "MT10", protocol="metaworld", n_eval_episodes=2)
    assert found.success_rate == [1.0] * 10


@pytest.mark.parametrize("policy", POLICIES)
def test_acts_as_it_was(policy: str, folder: Path) -> None:
    model = trained(policy, gamma=0.9, tau=0.01, learning_rate=lambda left: 1e-3, max_grad_norm=(1.0, 0.5))
    assert save_pretrained(model, folder / "tiny", CARD) == [folder / "tiny.zip", folder / "tiny.json"]
    loaded = load_pretrained("tiny", device="cpu")
    assert isinstance(loaded.policy, POLICIES[policy])
    assert loaded.task_names == TASKS
    assert (loaded.gamma, loaded.tau, loaded.learning_rate, loaded.batch_size) == (0.9, 0.01, 1e-3, 2 * M)
    assert (loaded.loss_weighting, loaded.max_grad_norm, loaded.num_timesteps) == ("alpha", [1.0, 0.5], 20 * M)
    assert loaded.policy_kwargs == model.policy_kwargs
    obs = np.asarray(model.get_env().reset())  # type: ignore[union-attr]  # normalised
    expected, found = (each.predict(obs, deterministic=True)[0] for each in (model, loaded))
    np.testing.assert_array_equal(found, expected)
    weights, of_loaded = model.policy.state_dict(), loaded.policy.state_dict()
    assert weights.keys() == of_loaded.keys()
    for key, value in of_loaded.items():
        assert th.equal(value, weights[key.replace("critic_target.", "critic.")]), key
    assert th.equal(loaded.log_ent_coef, model.log_ent_coef)  # type: ignore[arg-type]
    assert not loaded.critic.optimizer.state


def test_evaluates_in_envs_with_raw_observations(folder: Path) -> None:
    model = trained()
    save_pretrained(model, folder / "tiny", CARD)
    results = []
    for each in (model, load_pretrained("tiny", device="cpu")):
        env = MultiTaskVecNormalize(make_point_mass_env(M), training=False)
        env.seed(5)
        results.append(evaluate_tasks(each, env, n_eval_episodes=3))
    assert results[0].mean_return == results[1].mean_return


def test_goes_on_learning(folder: Path) -> None:
    save_pretrained(trained(), folder / "tiny", CARD)
    loaded = load_pretrained("tiny", make_point_mass_env(M), device="cpu")
    normalize = loaded.get_vec_normalize_env()
    assert isinstance(normalize, MultiTaskVecNormalize)
    assert normalize.obs_rms[0].count == pytest.approx(21 * M, abs=1e-3)
    assert (normalize.gamma, normalize.training, normalize.norm_reward) == (0.9, True, True)
    before = {key: value.clone() for key, value in loaded.actor.state_dict().items()}
    loaded.learn(5 * M, reset_num_timesteps=False)
    assert loaded.num_timesteps == 25 * M
    assert any(not th.equal(value, before[key]) for key, value in loaded.actor.state_dict().items())
    save_pretrained(loaded, folder / "again", CARD)
    assert load_pretrained("again", device="cpu").num_timesteps == 25 * M


def test_fixed_temperatures_without_normalisation(folder: Path) -> None:
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4]), ent_coef=[0.1, 0.2, 0.3], device="cpu")
    model = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(M), **kwargs)
    save_pretrained(model, folder / "tiny", CARD)
    loaded = load_pretrained("tiny", device="cpu")
    assert loaded.normalization is None
    assert th.equal(loaded.ent_coef_tensor, th.tensor([0.1, 0.2, 0.3]))
    assert evaluate_tasks(loaded, make_point_mass_env(M), n_eval_episodes=1).episodes == [1] * M


def test_nothing_is_pickled_and_load_knows_the_file(folder: Path) -> None:
    path, _ = save_pretrained(trained(), folder / "tiny", CARD)
    assert "serialized" not in json.dumps(saved_facts(path))
    with zipfile.ZipFile(path) as archive:
        assert "critic.optimizer.pth" not in archive.namelist()
        weights = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    assert {key.partition(".")[0] for key in weights} == {"actor", "critic"}
    assert MultiTaskSAC.load(path, device="cpu").task_names == TASKS
    assert MultiTaskSAC.load(path, device="cpu", gamma=0.5).gamma == 0.5


def test_card(folder: Path) -> None:
    model = trained()
    save_pretrained(model, folder / "tiny", {**CARD, "method": "softmod_shallow"})
    card = pretrained.pretrained_card("tiny")
    assert {**card, **CARD, "method": "softmod_shallow"} == card
    assert card["package_version"] == sb3_softmod.__version__
    assert card["tasks"] == TASKS
    assert card["parameters"]["actor"] == sum(each.numel() for each in model.actor.parameters())


def test_unknown_names(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no pretrained model 'MT10': none comes with this version"):
        load_pretrained("MT10")
    for name in ("tiny", "other"):
        save_pretrained(trained(), folder / name, CARD)
    assert pretrained.pretrained_names() == ["other", "tiny"]
    for name in ("../tiny", "", "tiny.zip"):
        with pytest.raises(ConfigurationError, match=r"There is no pretrained model .*: there are other, tiny\."):
            load_pretrained(name)


def test_other_tasks(folder: Path) -> None:
    save_pretrained(trained(), folder / "tiny", CARD)
    with pytest.raises(ConfigurationError, match="saved for 3 tasks, but the env has 2"):
        load_pretrained("tiny", make_point_mass_env(2))


def test_names_of_envs_that_were_not_the_training_s(folder: Path) -> None:
    save_pretrained(trained(), folder / "tiny", CARD | {"env_kwargs": {"seed": 4, "horizon": 5}})
    with pytest.raises(ConfigurationError, match=r"trained in envs made with .*'horizon': 5}: pass an env"):
        load_pretrained("tiny", "MT3")
    assert load_pretrained("tiny", make_point_mass_env(M), device="cpu").seed == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"plain_format": 2}, "of format 2, but this version reads format 1"),
        ({"policy_class": "NoPolicy"}, "NoPolicy"),
        ({"observation_space": {"low": [0.0], "high": [1.0, 2.0]}}, "its observation_space is none"),
        ({"action_space": 3}, "its action_space is none"),
        ({"policy_kwargs": {"module_dim": 5, "embedding_dim": 6}}, "do not fit this model"),
        ({"gamma": "much"}, "gamma must be a finite number"),
        ({"task_names": ["one"]}, "its task_names are not those of 3 tasks"),
        ({"task_names": 3}, "its task_names are none: 3"),
        ({"num_tasks": 2}, "its task_names are not those of 2 tasks"),
        ({"normalization": {}}, "statistics of the observations are incomplete"),
    ],
)
def test_broken_files(wrong: dict[str, Any], message: str, folder: Path) -> None:
    path, _ = save_pretrained(trained(), folder / "tiny", CARD)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["data"] = json.dumps({**json.loads(entries["data"]), **wrong}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(FileError, match=rf"tiny\.zip.*{message}"):
        load_pretrained("tiny")


def test_cut_files(folder: Path) -> None:
    path, card = save_pretrained(trained(), folder / "tiny", CARD)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileError, match=r"tiny\.zip is broken"):
        load_pretrained("tiny")
    card.write_text('{"task_set": "MT3"}')
    with pytest.raises(FileError, match=r"tiny\.json is broken: it needs env_kwargs \(dict\), success \(dict\)"):
        pretrained.pretrained_card("tiny")


def test_what_plain_text_cannot_hold(tmp_path: Path) -> None:
    model = trained()
    for card, message in (
        ({}, "card of a model is not complete: it needs task_set"),
        ({**CARD, "success": {"corner-0": 1.0}}, "success must have a rate for each of its tasks"),
        ({**CARD, "seed": th.zeros(1)}, "card of a model must be plain data"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            save_pretrained(model, tmp_path / "tiny", card)
    no_plain_number: Any = np.float32(-2)
    model.target_entropy = no_plain_number
    with pytest.raises(ConfigurationError, match="cannot hold target_entropy="):
        save_pretrained(model, tmp_path / "tiny", CARD)
    other = MultiTaskSAC("MlpPolicy", make_point_mass_env(M), device="cpu")
    with pytest.raises(ConfigurationError, match="Only a policy of this package can be saved in plain text, not SAC"):
        save_pretrained(other, tmp_path / "tiny", CARD)
    assert not list(tmp_path.iterdir())
