"""What version 0.1.0 wrote, before its modules were moved into wings, is read as it was."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskVecEnv, MultiTaskVecNormalize, SoftModSAC, make_multitask_env
from sb3_softmod.evaluation import evaluate_tasks
from sb3_softmod.policies import SoftModularExtractor
from sb3_softmod.runs.evaluation import load_model
from sb3_softmod.runs.results import results_table
from sb3_softmod.runs.run import find_runs

FILES = Path(__file__).parent / "version_0_1_0"


@pytest.fixture
def env() -> MultiTaskVecEnv:
    """As it was when the files were written."""
    tasks = {"a": "Pendulum-v1", "b": "Pendulum-v1"}
    return make_multitask_env(tasks, n_workers=0, seed=0, max_episode_steps=20)


def test_model_acts_as_it_did() -> None:
    saved = np.load(FILES / "acts.npz")
    model = SoftModSAC.load(FILES / "model.zip", device="cpu")
    actions = model.predict(saved["observations"], deterministic=True)[0]
    np.testing.assert_allclose(actions, saved["actions"], atol=1e-6)


def test_model_goes_on_with_its_normalisation_and_its_buffer(env: MultiTaskVecEnv) -> None:
    model = SoftModSAC.load(FILES / "model.zip", env=env, device="cpu")
    assert isinstance(model.get_env(), MultiTaskVecNormalize)
    model.load_replay_buffer(FILES / "buffer.pkl")
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    assert model.replay_buffer.size_per_task().tolist() == [30, 30]
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 80


def test_safe_loading(env: MultiTaskVecEnv) -> None:
    normalized = MultiTaskVecNormalize.load(str(FILES / "vecnormalize.pkl"), env)
    model = SoftModSAC.load(FILES / "model.zip", env=normalized, policy="SoftModPolicy", safe=True, device="cpu")
    assert model.num_timesteps == 60
    saved = np.load(FILES / "acts.npz")
    actions = model.predict(saved["observations"], deterministic=True)[0]
    np.testing.assert_allclose(actions, saved["actions"], atol=1e-6)


def test_checkpoint_is_resumed(env: MultiTaskVecEnv, tmp_path: Path) -> None:
    shutil.copytree(FILES / "checkpointed", tmp_path / "run")
    model = SoftModSAC.resume(tmp_path / "run", env=env, device="cpu")
    assert (model.num_timesteps, model.remaining_timesteps) == (30, 30)
    assert isinstance(model.replay_buffer, MultiTaskReplayBuffer)
    assert model.replay_buffer.size_per_task().tolist() == [15, 15]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.learn().num_timesteps == 60


def test_extractor_in_ppo() -> None:
    model = PPO.load(FILES / "ppo.zip", device="cpu")
    assert type(model.policy.features_extractor) is SoftModularExtractor


def test_run_folder(tmp_path: Path) -> None:
    shutil.copytree(FILES / "logs", tmp_path / "logs")
    runs, problems = find_runs(tmp_path / "logs")
    assert problems == []
    assert "Ours (Shallow)" in results_table(runs, "markdown")
    for best in (False, True):
        found = evaluate_tasks(load_model(runs[0], best=best), "reach-v3", n_eval_episodes=1, seed=0, n_workers=0)
        assert found.episodes == [1]
