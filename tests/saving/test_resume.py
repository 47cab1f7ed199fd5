"""A training that is interrupted and resumed is, bit for bit, the one that was not."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from resumable_run import After, everything, logged, make_env, make_model, never
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from worker_envs import M

from sb3_softmod import (
    ConfigurationError,
    FileError,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    NonFiniteError,
    SoftModSAC,
)
from sb3_softmod.common.errors import CheckpointError
from sb3_softmod.evaluation import MultiTaskEvalCallback
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback


@pytest.fixture(autouse=True)
def _nothing_is_inexact() -> Iterator[None]:
    """A warning says that a run does not go on exactly: none where none is expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message=".*(bit for bit|begin anew|new episodes|went another way|cannot be used)"
        )
        yield


# ------------------------------------------------------------------ in one process


def changing_rate(remaining: float) -> float:
    return 1e-3 * remaining + 1e-4


def noise() -> OrnsteinUhlenbeckActionNoise:
    return OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.3))


def make_sb3_model(env: Any, **kwargs: Any) -> MultiTaskSAC:
    options: dict[str, Any] = dict(learning_starts=12, batch_size=12, buffer_size=72, seed=0)
    return MultiTaskSAC("MlpPolicy", env, policy_kwargs=dict(net_arch=[8]), **options, **kwargs)


def make_hard_routing_model(env: Any) -> MultiTaskSAC:
    sizes = dict(num_layers=2, num_modules=2, module_dim=8, embedding_dim=8)
    return MultiTaskSAC(
        "HardRoutingPolicy", env, learning_starts=12, batch_size=12, buffer_size=72, seed=0, policy_kwargs=sizes
    )


#: By what is special: how the envs and how the model are made.
TRAININGS: dict[str, tuple[Callable[[], Any], Callable[[Any], MultiTaskSAC]]] = {
    "nothing": (make_env, make_model),
    "overlap, several gradient steps": (make_env, partial(make_model, overlap=True, gradient_steps=3)),
    "taking turns": (partial(make_env, n_envs=2), partial(make_model, overlap=True)),
    "one env, fixed temperatures": (partial(make_env, n_envs=1), partial(make_model, ent_coef=[0.1, 0.2, 0.3])),
    "several envs a task, weights": (
        partial(make_env, envs_per_task=2),
        partial(make_model, loss_weighting="alpha", max_grad_norm=1.0),
    ),
    "normalised": (lambda: MultiTaskVecNormalize(make_env()), partial(make_model, overlap=True)),
    "normalised by task": (lambda: MultiTaskVecNormalize(make_env(n_envs=2), obs_statistics="per-task"), make_model),
    "returns of several steps": (partial(make_env, envs_per_task=2), partial(make_model, n_steps=3, overlap=True)),
    "GradNorm": (make_env, partial(make_model, loss_weighting="gradnorm")),
    "FAMO, taking turns": (partial(make_env, n_envs=2), partial(make_model, loss_weighting="famo", overlap=True)),
    "uncertainty": (make_env, partial(make_model, loss_weighting="uncertainty", learning_rate=changing_rate)),
    "gradient surgery": (make_env, partial(make_model, gradient_surgery="pcgrad")),
    "action noise, learning rate": (
        make_env,
        lambda env: make_model(env, action_noise=noise(), learning_rate=changing_rate),
    ),
    "gSDE": (make_env, partial(make_sb3_model, use_sde=True, sde_sample_freq=2, train_freq=3)),
    "train_freq": (make_env, partial(make_model, train_freq=3, gradient_steps=3, target_update_interval=2)),
    "train_freq, overlap": (make_env, partial(make_model, train_freq=(2, "step"), gradient_steps=-1, overlap=True)),
    "episodes": (partial(make_env, n_envs=1), partial(make_model, train_freq=(1, "episode"), gradient_steps=5)),
    "SB3's buffer": (make_env, partial(make_sb3_model, replay_buffer_class=ReplayBuffer)),
    "scaled rewards": (partial(make_env, n_envs=2), partial(make_model, overlap=True, reward_scaling="per-task")),
    "the laptop's critics": (
        partial(make_env, envs_per_task=2),
        partial(
            make_model,
            **dict(critic="categorical", n_steps=3, reward_scaling="per-task", policy_delay=2, overlap=True),
            **dict(target_entropy="auto_0.5", ent_coef="auto_0.1", critic_target="mean", loss_weighting="success"),
        ),
    ),
    "drawn routes": (make_env, make_hard_routing_model),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_from_any_moment(name: str, tmp_path: Path) -> None:
    env_of, model_of = TRAININGS[name]
    alone = model_of(env_of())
    steps = 36 * max(M, alone.n_envs)
    log_alone = logged(alone)
    alone.learn(steps, log_interval=1)
    assert len(log_alone) >= 2
    assert alone._n_updates >= 10
    expected = everything(alone)

    watched = model_of(env_of())
    log = logged(watched)
    watched.learn(steps, CheckpointCallback(tmp_path / "all", save_freq=2, keep_last=1000), log_interval=1)
    assert everything(watched) == expected
    assert log == log_alone

    moments = sorted((tmp_path / "all" / "checkpoints").glob("[0-9]*"))
    rng = random.Random(name)
    for number, part in enumerate((0.05, 0.3, rng.uniform(0.3, 0.95))):  # the first before it learns
        moment = moments[int(part * len(moments))]
        path = tmp_path / str(number)
        model = type(watched).resume(moment, env_of())
        assert model.num_timesteps == int(moment.name) > 0
        log = logged(model)
        often = 3 if number == 1 else 0
        model.learn(callback=CheckpointCallback(path, save_freq=often, keep_last=1000), log_interval=1)
        assert everything(model) == expected, moment.name
        assert log == [line for line in log_alone if line["step"] > int(moment.name)]
        if number == 1:  # once more
            again = rng.choice(sorted((path / "checkpoints").glob("[0-9]*")))
            model = type(watched).resume(again, env_of())
            model.learn(callback=CheckpointCallback(tmp_path / "twice"), log_interval=1)
            assert everything(model) == expected, again.name


def test_a_finished_training(tmp_path: Path) -> None:
    """The second of two parts, of which only what is left is learned."""
    model = make_model(make_env(), overlap=True)
    callback = CheckpointCallback(tmp_path, save_freq=7)
    model.learn(40, callback)
    model.learn(50, callback, reset_num_timesteps=False)
    expected = everything(model)
    for _ in range(2):
        model = SoftModSAC.resume(tmp_path, make_env())
        assert model.num_timesteps == 84
        model.learn(callback=CheckpointCallback(tmp_path, save_freq=7))
        assert model.num_timesteps == 93
        assert everything(model) == expected


def test_a_training_that_goes_on_is_one_training(tmp_path: Path) -> None:
    """One callback after the other in one folder, and parts without any: each checkpoint holds all that came before."""
    model = make_model(make_env(), buffer_size=3000)
    model.learn(60, CheckpointCallback(tmp_path, save_freq=10, keep_last=1))
    model.learn(60, CheckpointCallback(tmp_path, save_freq=10, keep_last=1), reset_num_timesteps=False)
    path = tmp_path / "checkpoints"
    shutil.copytree(path, tmp_path / "copy" / "checkpoints")
    resumed = SoftModSAC.resume(tmp_path / "copy", make_env())
    resumed.learn(callback=CheckpointCallback(tmp_path / "copy"))
    resumed.learn(45, reset_num_timesteps=False)
    resumed.learn(45, CheckpointCallback(tmp_path / "copy", save_freq=10, keep_last=1), reset_num_timesteps=False)
    expected = everything(resumed)
    last = SoftModSAC.resume(tmp_path / "copy", make_env())
    last.learn(callback=CheckpointCallback(tmp_path / "copy"))
    assert everything(last) == expected
    assert last.replay_buffer is not None
    assert last.replay_buffer.size() == 210


# ---------------------------------------------------------- what cannot be exact, and what cannot be


def interrupted(path: Path, env: Any = None, callbacks: tuple[BaseCallback, ...] = (), **kwargs: Any) -> MultiTaskSAC:
    """A training of 20 steps that a signal ends after 8, with a checkpoint."""
    model = make_model(make_env() if env is None else env, **kwargs)
    signals = After(8, lambda: signal.raise_signal(signal.SIGTERM))
    model.learn(20 * M, [CheckpointCallback(path, save_freq=0), *callbacks, signals])
    assert model.num_timesteps == 8 * model.n_envs
    return model


def test_envs_that_cannot_tell_how_far_they_are(tmp_path: Path) -> None:
    interrupted(tmp_path, make_point_mass_env(M))
    with pytest.warns(
        UserWarning, match=r"new episodes in all envs, not in the middle of the old ones\. DummyVecEnv c"
    ):
        model = SoftModSAC.resume(tmp_path, make_point_mass_env(M))
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 8 * M
    model.learn(callback=[CheckpointCallback(tmp_path), never()])
    assert model.num_timesteps == 20 * M


def test_another_number_of_threads(tmp_path: Path) -> None:
    interrupted(tmp_path)
    th.set_num_threads(2)
    with pytest.warns(UserWarning, match=r"not bit for bit .* \(torch.set_num_threads\) was 1, and is 2 now\."):
        SoftModSAC.resume(tmp_path, make_env())


def test_another_version_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path)
    monkeypatch.setattr(th, "__version__", "9.9")
    with pytest.warns(UserWarning, match=r"not bit for bit .*: torch's version was .*, and is 9\.9 now"):
        SoftModSAC.resume(tmp_path, make_env())


def test_an_evaluation_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the training; what was saved before stays, and the training can go on."""
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "evaluations.csv" and Path(target).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    evaluation = MultiTaskEvalCallback(make_env(), n_eval_episodes=1, eval_freq=5, log_path=str(tmp_path), verbose=0)
    with pytest.raises(FileError, match=r"evaluations\.csv: No space left on device"):
        make_model(make_env()).learn(20 * M, [CheckpointCallback(tmp_path, save_freq=4), evaluation])
    rows = (tmp_path / "evaluations.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [15] * M
    assert SoftModSAC.resume(tmp_path, make_env()).num_timesteps == 8 * M


def test_callbacks_are_told_by_their_classes(tmp_path: Path) -> None:
    """Whatever their order; one that is new begins anew, and one that is gone is not missed."""
    interrupted(tmp_path)
    model = SoftModSAC.resume(tmp_path, make_env())
    same, new = CheckpointCallback(tmp_path), Curriculum("here", 1.0)
    with pytest.warns(UserWarning, match=r"Callbacks that the checkpoint does not know begin anew: Curriculum\."):
        model.learn(callback=[new, same])
    assert same.n_calls == 20
    assert new.seen == [M * (i + 1) for i in range(8, 20)]


class Curriculum(BaseCallback):
    """Has settings of which one changes, and counts."""

    def __init__(self, folder: str, threshold: float) -> None:
        super().__init__()
        self.folder = folder
        self.threshold = threshold
        self.seen: list[int] = []

    def _on_step(self) -> bool:
        self.threshold *= 0.5
        self.seen.append(self.num_timesteps)
        return True


def test_callbacks_go_on_with_the_settings_that_they_are_given(tmp_path: Path) -> None:
    interrupted(tmp_path, callbacks=(Curriculum("here", 1.0),))
    model = SoftModSAC.resume(tmp_path, make_env())
    moved = Curriculum("there", 1.0)
    model.learn(callback=[CheckpointCallback(tmp_path), moved, never()])
    assert (moved.folder, moved.threshold) == ("there", 0.5**20)
    assert moved.seen == [M * (i + 1) for i in range(20)]


def test_evaluations_go_on(tmp_path: Path) -> None:
    """Their counters, their best model, and their files, in which no evaluation is missing or there twice."""

    def evaluation() -> MultiTaskEvalCallback:
        return MultiTaskEvalCallback(
            make_env(), n_eval_episodes=1, eval_freq=5, log_path=str(tmp_path / "log"), verbose=0,
            best_model_save_path=str(tmp_path / "log"),
        )  # fmt: skip

    first = evaluation()
    interrupted(tmp_path, callbacks=(first,))
    assert first.num_evaluations == 1
    model = SoftModSAC.resume(tmp_path, make_env())
    second = evaluation()
    model.learn(callback=[CheckpointCallback(tmp_path), second, never()])
    assert second.num_evaluations == 4
    tables = np.load(tmp_path / "log" / "evaluations.npz")
    assert second.best_mean_reward == tables["results"].mean(1).max()
    assert second.summary()["best_success_rate"] == tables["successes"].mean(1).max()
    assert np.load(tmp_path / "log" / "evaluations.npz")["timesteps"].tolist() == [15, 30, 45, 60]
    rows = (tmp_path / "log" / "evaluations.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == np.repeat([15, 30, 45, 60], M).tolist()


def test_what_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(ConfigurationError, match="saved for 3 tasks, but the env has 4"):
        SoftModSAC.resume(tmp_path, make_point_mass_env(4))
    with pytest.raises(ConfigurationError, match=r"learn\(\) needs total_timesteps; only a resumed model knows"):
        make_model(make_env()).learn()
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*nowhere\."):
        SoftModSAC.resume(tmp_path / "nowhere", make_env())
    for wrong in (dict(save_freq=-1), dict(keep_last=0), dict(save_freq=1.5), dict(keep_last=True)):
        (name,) = wrong
        with pytest.raises(ConfigurationError, match=f"{name} must be a"):
            CheckpointCallback(tmp_path, **wrong)


def test_dropped_updates_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, and those in a row, of which too many end the run where they would have without the break."""
    monkeypatch.setattr("sb3_softmod.learner.finite_updates.MOST_IN_A_ROW", 12)

    def break_off(model: MultiTaskSAC, steps: int | None, *callbacks: Any) -> tuple[str, int]:
        with pytest.raises(NonFiniteError, match="in a row: this run learns nothing any more") as error:
            model.learn(steps, [*callbacks])
        return str(error.value).partition(" The update is in ")[0], model.nonfinite_updates

    def poisoned() -> tuple[MultiTaskSAC, After]:
        model = make_model(make_env(), on_nonfinite="skip")
        assert model.log_ent_coef is not None
        model.set_logger(Logger(str(tmp_path), []))
        return model, After(6, partial(model.log_ent_coef.data.fill_, math.nan))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradient step|Callbacks that the checkpoint")
        model, poison = poisoned()
        expected = break_off(model, 40 * M, poison)
        model, poison = poisoned()
        stop = After(14, lambda: None, stop=True)
        model.learn(40 * M, [CheckpointCallback(tmp_path, save_freq=12), poison, stop])
        resumed = SoftModSAC.resume(tmp_path, make_env())
        resumed.set_logger(Logger(str(tmp_path), []))
        assert 0 < resumed.nonfinite_updates < 12
        assert break_off(resumed, None, never()) == expected
