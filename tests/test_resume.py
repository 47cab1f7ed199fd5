"""A training that is interrupted and resumed is, bit for bit, the one that was not."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from resumable_run import Runs, everything, logged, make_env, make_model
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from worker_envs import M

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize, SoftModSAC
from sb3_softmod.callbacks import MultiTaskEvalCallback
from sb3_softmod.checkpoint_callback import CheckpointCallback
from sb3_softmod.errors import CheckpointError


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
    "drawn routes": (make_env, make_hard_routing_model),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_from_any_moment(name: str, tmp_path: Path) -> None:
    env_of, model_of = TRAININGS[name]
    alone = model_of(env_of())
    steps = 30 * M if alone.n_envs < M else 30 * alone.n_envs
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
        model.learn(callback=CheckpointCallback(path, save_freq=3, keep_last=1000), log_interval=1)
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


class After(BaseCallback):
    """Does something in a certain step."""

    def __init__(self, calls: int, then: Callable[[], Any], stop: bool = False) -> None:
        super().__init__()
        self._calls, self._then, self._stop = calls, then, stop

    def _on_step(self) -> bool:
        if self.n_calls != self._calls:
            return True
        self._then()
        return not self._stop


def interrupted(path: Path, env: Any = None, callbacks: tuple[BaseCallback, ...] = (), **kwargs: Any) -> MultiTaskSAC:
    """A training of 20 steps that a signal ends after 8, with a checkpoint."""
    model = make_model(make_env() if env is None else env, **kwargs)
    signals = After(8, lambda: signal.raise_signal(signal.SIGTERM))
    model.learn(20 * M, [CheckpointCallback(path, save_freq=0), *callbacks, signals])
    assert model.num_timesteps == 8 * model.n_envs
    return model


def never() -> After:
    return After(10**6, lambda: None)


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
    assert second.best_mean_reward >= first.best_mean_reward
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
        with pytest.raises(ConfigurationError, match=f"{name} must be a whole number of at least"):
            CheckpointCallback(tmp_path, **wrong)


# ------------------------------------------------------------------------------ signals


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.fixture
def noted() -> Iterator[list[int]]:
    """The signals that come through to the handlers of the process."""
    before = handlers()
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    yield signals
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_training_with_a_checkpoint(
    name: str, tmp_path: Path, noted: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    number, before = signal.Signals[name], handlers()
    alone = make_model(make_env())
    alone.learn(20 * M, never())
    expected = everything(alone)
    model = make_model(make_env())
    callback = CheckpointCallback(tmp_path, save_freq=5)
    model.learn(20 * M, [callback, After(8, lambda: signal.raise_signal(number))])
    assert callback.ended_by == name
    assert not noted
    assert handlers() == before
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")) == [f"{15:012d}", f"{24:012d}"]
    out, errors = capfd.readouterr()
    assert f"{name}: a checkpoint after this step, then the end. Once more ends at once." in errors
    how = f"SoftModSAC.resume({str(tmp_path)!r}, env=...).learn(callback=...)"
    assert out == f"Ended by {name} at step 24. To go on: {how}\n"
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path, save_freq=5), never()])
    assert everything(resumed) == expected


def test_a_second_signal_does_what_it_would_have_done(tmp_path: Path, noted: list[int]) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    make_model(make_env()).learn(20 * M, [CheckpointCallback(tmp_path), After(8, twice)])
    assert noted == [signal.SIGTERM]


def test_a_signal_in_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(make_env(), overlap=True)
    callback = CheckpointCallback(tmp_path)
    model.learn(20 * M, [callback, After(20, lambda: signal.raise_signal(signal.SIGTERM))])
    expected = everything(model)
    assert callback.ended_by == "SIGTERM"
    assert "Ended by SIGTERM at step 60. To go on: " in capsys.readouterr().out
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path), never()])
    assert resumed.num_timesteps == 60
    assert everything(resumed) == expected


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    class AtStart(BaseCallback):
        def _on_training_start(self) -> None:
            signal.raise_signal(signal.SIGTERM)

        def _on_step(self) -> bool:
            return True

    model = make_model(make_env())
    model.learn(20 * M, [CheckpointCallback(tmp_path), AtStart()])
    assert model.num_timesteps == 0
    resumed = SoftModSAC.resume(tmp_path, make_env())
    resumed.learn(callback=[CheckpointCallback(tmp_path), never()])
    found = everything(resumed)
    model = make_model(make_env())
    model.learn(20 * M)
    assert found == everything(model)


def test_the_handlers_are_given_back_when_a_training_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    before = handlers()
    path = str(tmp_path)
    with pytest.raises(ZeroDivisionError):
        make_model(make_env()).learn(20 * M, [CheckpointCallback(path), After(3, fail)])
    assert handlers() == before
    two = [CheckpointCallback(tmp_path / name) for name in "ab"]
    make_model(make_env()).learn(2 * M, [*two])
    assert handlers() == before
    again = make_model(make_env())
    again.learn(M, CheckpointCallback(path))  # the folder is free, too


def test_ignored_signals_stay_ignored(tmp_path: Path, noted: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    callback = CheckpointCallback(tmp_path)
    model = make_model(make_env())
    model.learn(10 * M, [callback, After(4, lambda: signal.raise_signal(signal.SIGINT))])
    assert callback.ended_by is None
    assert model.num_timesteps == 10 * M
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_signal_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def without_stderr() -> None:
        kept = os.dup(2)
        os.close(2)
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            os.dup2(kept, 2)
            os.close(kept)

    model = make_model(make_env())
    model.learn(20 * M, [CheckpointCallback(tmp_path), After(8, without_stderr)])
    assert model.num_timesteps == 24


# ---------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    server = Runs()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.wait(runs.start(folder)) == 0, (folder / "errors").read_text()
    return folder


def steps_on_disk(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def newest_step(folder: Path) -> int:
    return max(steps_on_disk(folder), default=0)


def reached(folder: Path, step: int) -> bool:
    return newest_step(folder) >= step


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(folder: Path, whole: Path) -> None:
    """A run that is finished is the one that nothing interrupted; also in what it logged, some of it twice."""
    assert pickle.loads((folder / "final.pkl").read_bytes()) == pickle.loads((whole / "final.pkl").read_bytes())
    expected, found = lines(whole / "log"), lines(folder / "log")
    assert all(line in expected for line in found)
    assert all(line in found for line in expected)


def until(condition: Callable[[], Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_processes(runs: Runs, whole: Path, tmp_path: Path) -> None:
    """Nothing of what was on the disk is lost, whenever SIGKILL comes."""
    rng = random.Random(0)
    for _ in range(4):
        before = newest_step(tmp_path)
        pid = runs.start(tmp_path)
        until(partial(reached, tmp_path, before + rng.choice([6, 12, 18])))
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert runs.wait(pid) == -signal.SIGKILL
        assert lines(tmp_path / "starts")[-1] == before
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    check(tmp_path, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGTERM to the group"])
def test_ended_processes(name: str, runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path)
    until(lambda: steps_on_disk(tmp_path))
    number = signal.Signals[name.split()[0]]
    if "group" in name:
        os.killpg(pid, number)  # the workers too, and the server that they are forks of
    else:
        os.kill(pid, number)
    assert runs.wait(pid) == 0, (tmp_path / "errors").read_text()
    *_, last = steps_on_disk(tmp_path)
    assert (
        f"Ended by {number.name} at step {last}. To go on: SoftModSAC.resume({str(tmp_path)!r}"
        in (tmp_path / "output").read_text()
    )
    assert not (tmp_path / "final.pkl").exists()
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    assert lines(tmp_path / "starts") == [0, last]
    check(tmp_path, whole)


def test_a_second_sigterm_ends_a_process_at_once(runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path, pause_at=5)
    until(lambda: (tmp_path / "pausing").exists())
    os.kill(pid, signal.SIGTERM)
    until(lambda: "Once more ends at once" in (tmp_path / "errors").read_text())
    os.kill(pid, signal.SIGTERM)
    assert runs.wait(pid) == -signal.SIGTERM
    before = newest_step(tmp_path)
    assert runs.wait(runs.start(tmp_path)) == 0, (tmp_path / "errors").read_text()
    assert lines(tmp_path / "starts") == [0, before]
    check(tmp_path, whole)


def test_nohup(runs: Runs, whole: Path, tmp_path: Path) -> None:
    pid = runs.start(tmp_path, ignored=signal.SIGINT)
    until(lambda: steps_on_disk(tmp_path))
    os.kill(pid, signal.SIGINT)
    assert runs.wait(pid) == 0, (tmp_path / "errors").read_text()
    check(tmp_path, whole)
