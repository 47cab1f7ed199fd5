"""MultiTaskVecEnv: an env or a worker that fails gives an error that says where, and nothing hangs or leaks."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import is_alive
from point_mass import HORIZON, make_task
from shared_memory import left_behind, segments
from worker_envs import M, make_troubled_env

from sb3_softmod import EnvError, MultiTaskVecEnv, SoftModError, TaskEnv


def eventually(condition: Any, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_closing() -> None:
    before = segments()
    env = make_troubled_env(n_workers=2)
    pids = env.env_method("pid")
    env.reset()
    env.step_async(np.zeros((M, 2)))
    assert not left_behind(before)
    env.close()
    env.close()
    assert not any(map(is_alive, pids))
    for use in (env.reset, lambda: env.step(np.zeros((M, 2))), lambda: env.env_method("pid"), env.step_wait):
        with pytest.raises(SoftModError, match="This env is closed"):
            use()


def test_a_forgotten_env_is_closed() -> None:
    env = make_troubled_env(n_workers=2)
    pids = env.env_method("pid")
    del env
    gc.collect()
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_env_that_raises(n_workers: int) -> None:
    env = make_troubled_env(n_workers=n_workers)
    pids = set(env.env_method("pid")) - {os.getpid()}
    env.reset()
    with pytest.raises(EnvError) as caught:
        env.step(np.array([[0, 0], [1, 0], [0, 0]]))
    message = str(caught.value)
    assert "Env 1 (task 'corner-1') raised ZeroDivisionError: the simulation is unstable" in message
    assert 'raise ZeroDivisionError("the simulation is unstable")' in message  # the line of the traceback
    assert not any(map(is_alive, pids))


def test_an_env_that_cannot_be_built() -> None:
    def make(copy: int) -> TaskEnv:
        raise OSError("no such model")

    with pytest.raises(EnvError, match=r"(?s)Env 0 \(task 0\) raised OSError: no such model.*Traceback"):
        MultiTaskVecEnv([make], n_workers=1)


def test_a_worker_that_dies() -> None:
    env = make_troubled_env(n_workers=2)
    pids = env.env_method("pid")
    env.reset()
    os.kill(pids[1], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EnvError, match=r"exit code -9; .*Its envs: env 1 \(task 'corner-1'\)\."):
        env.step(np.zeros((M, 2)))
    assert time.monotonic() - start < 5
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(("trouble", "n_workers"), [("raise", 0), ("raise", 2), ("die", 2)])
def test_restarting(trouble: str, n_workers: int) -> None:
    env = make_troubled_env(n_workers=n_workers, restart_failed=True)
    env.env_method("set_wrapper_attr", "trouble", trouble)
    env.reset()
    last = np.asarray(env.step(np.zeros((M, 2)))[0])
    bad = np.array([[1, 0], [0, 0], [0, 0]])  # with two workers the first has envs 0 and 2
    lost = [0, 2] if n_workers else [0, 1, 2]
    with pytest.warns(UserWarning, match="Building the envs of a worker anew after this error"):
        obs, rewards, dones, infos = env.step(bad)
    assert np.flatnonzero(dones).tolist() == lost
    for index in lost:
        assert rewards[index] == 0
        assert infos[index]["TimeLimit.truncated"]
        assert not {"is_success", "episode", "success"} & infos[index].keys()
        np.testing.assert_array_equal(infos[index]["terminal_observation"], last[index])
        assert not np.array_equal(obs[index], last[index])  # type: ignore[index]
    assert env.num_restarts == 1
    for step in range(1, HORIZON + 1):
        dones = env.step(np.zeros((M, 2)))[2]
        assert dones[lost].tolist() == [step == HORIZON] * len(lost)
    env.close()


def test_restarting_gives_up_when_it_does_not_help() -> None:
    env = make_troubled_env(n_workers=1, restart_failed=True)
    env.reset()
    bad = np.ones((M, 2))
    with pytest.warns(UserWarning, match="anew"):
        env.step(bad)
    with pytest.raises(EnvError, match="the simulation is unstable"):
        env.step(bad)
    with pytest.raises(SoftModError, match="This env is closed"):
        env.reset()


def test_restarting_a_rotation() -> None:
    env = make_troubled_env(n_envs=2, n_workers=1, restart_failed=True)
    env.reset()
    with pytest.warns(UserWarning, match="anew"):
        _, _, dones, infos = env.step(np.ones((2, 2)))
    assert dones.all()
    assert [info["task_id"] for info in infos] == [0, 1]
    assert env.task_ids.tolist() == [2, 0]
    env.close()


def test_a_task_that_a_worker_fails_to_begin_keeps_its_turn(tmp_path: Path) -> None:
    failed = tmp_path / "failed"

    def make(task: int, copy: int) -> TaskEnv:
        if task == 1 and not failed.exists():
            failed.touch()
            raise OSError("this once")
        return make_task(task, 3, horizon=1)

    env = MultiTaskVecEnv([partial(make, task) for task in range(3)], n_envs=1, n_workers=0, restart_failed=True)
    env.reset()
    with pytest.warns(UserWarning, match="this once"):
        env.step(np.zeros((1, 2)))
    turns = env.task_ids.tolist()
    for _ in range(3):
        env.step(np.zeros((1, 2)))
        turns += env.task_ids.tolist()
    assert turns == [1, 2, 0, 1]


SCRIPT = """
import os, sys, time
import torch  # as a user's script does, and without a main guard
import numpy as np
sys.path.insert(0, {tests!r})
from functools import partial
from sb3_softmod import MultiTaskVecEnv
from worker_envs import make_troubled
env = MultiTaskVecEnv([partial(make_troubled, task) for task in range(3)], n_workers=2)
env.reset()
print(*env.env_method("pid"), flush=True)
env.step(np.zeros((3, 2)))
{ending}
"""


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "time.sleep(60)", "1 / 0"])
def test_no_worker_outlives_the_script(ending: str) -> None:
    """However the script ends: killed, by Ctrl-C (which all processes get), or by itself without close()."""
    before = segments()
    code = SCRIPT.format(tests=str(Path(__file__).parents[1] / "helpers"), ending=ending)
    script = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    pids = list(map(int, script.stdout.readline().split()))
    assert len(pids) == 3
    if "sleep" in ending:
        time.sleep(0.3)
        os.killpg(script.pid, signal.SIGINT)
    _, stderr = script.communicate(timeout=20)
    assert eventually(lambda: not any(map(is_alive, pids)))
    assert not left_behind(before)
    assert "leaked" not in stderr
    assert stderr.count("Traceback") == (1 if "sleep" in ending or "/" in ending else 0), stderr
