"""Worker processes leave the process that starts them as it is, and let it end; they work wherever it may be."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import is_alive
from point_mass import PointMass
from worker_envs import M, make_troubled, make_troubled_env

from sb3_softmod import ConfigurationError, EnvError, MultiTaskVecEnv, make_multitask_env
from sb3_softmod.envs.worker_pool import WORKERS

HELPERS = Path(__file__).parents[1] / "helpers"

pytestmark = pytest.mark.usefixtures("worker_processes")

SCRIPT_THAT_FORGETS = """
import sys
sys.path.insert(0, {tests!r})
from worker_envs import Troubled
from sb3_softmod import make_multitask_env
class Loud(Troubled):
    def close(self): print("closed", flush=True)
tasks = {{"a": lambda: Loud(0), "b": lambda: Loud(1)}}
env = make_multitask_env(tasks, n_workers=2)
env.reset()
print("pids", *env.env_method("pid"), flush=True)
"""

#: What a script does before it makes its env, and after.
FINALIZE = "import weakref\nclass Thing: pass\nthing = Thing()\nweakref.finalize(thing, int)\n"
UTIL = "import multiprocessing.util\n"
DAEMON = (
    "import time, multiprocessing\n"
    "multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True).start()\n"
)
FORK = "import os\nif not os.fork(): sys.exit()\nos.wait()\nenv.reset()\n"
SCRIPTS = {
    "weakref.finalize, then multiprocessing": (FINALIZE + UTIL, ""),
    "multiprocessing, then weakref.finalize; at its end a process has all of its files": (UTIL + FINALIZE, DAEMON),
    "torch first; a fork of the script ended before it": ("import torch\n", FORK),
}


def test_a_script_ends_although_nobody_closed_its_env() -> None:
    """At once, and the envs are closed, which a worker that must be killed does not do."""
    scripts = {
        name: subprocess.Popen(
            [sys.executable, "-c", before + SCRIPT_THAT_FORGETS.format(tests=str(HELPERS)) + after],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (before, after) in SCRIPTS.items()
    }
    for name, script in scripts.items():
        try:
            out, err = script.communicate(timeout=60)
        finally:
            script.kill()
        assert (script.returncode, err) == (0, ""), name
        _, pids = out.split("pids")
        assert pids.count("closed") == 2, name
        assert not any(is_alive(int(pid)) for pid in pids.split()[:2]), name


# ------------------------------------------------------------------------------------------ the state of the process


def test_envs_made_in_threads_leave_the_process_as_it_is() -> None:
    def state() -> tuple[Any, ...]:
        return sys.modules["__main__"], dict(os.environ), sys.path[:], sys.argv[:], os.getcwd()

    failed = []

    def make() -> None:
        try:
            env = make_multitask_env({"a": partial(PointMass, 0)}, n_workers=1)
            env.reset()
            env.close()
        except Exception as error:
            failed.append(error)

    before = state()
    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        assert state() == before
        seen += 1
    assert not failed
    assert seen > 10
    assert state() == before


SCRIPT = """
import multiprocessing
import sys
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_softmod import make_multitask_env

print(__name__)

class MyEnv(gym.Env):
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)
    def reset(self, *, seed=None, options=None): return np.full(3, LEVEL, np.float32), {}
    def step(self, action): return np.zeros(3, np.float32), 0.0, False, False, {}

LEVEL = 0.5
gym.register("My-v0", entry_point="__main__:MyEnv", max_episode_steps=10)

def main():
    multiprocessing.set_forkserver_preload(["colorsys"])  # what nobody else loads
    for name in ("My-v0", "__main__:My-v0"):
        env = make_multitask_env([name, "Registered-v0"], n_workers=2)
        print(env.reset()[0, :3])
        env.close()
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(pool.apply(eval, ("'colorsys' in __import__('sys').modules",)))

gym.register("Registered-v0", entry_point=MyEnv, max_episode_steps=10)
"""


def test_envs_of_the_script_and_a_forkserver_of_the_user(tmp_path: Path) -> None:
    """An entry point ``__main__:MyEnv`` reaches the workers, which do not run the script."""
    (tmp_path / "script.py").write_text(SCRIPT + "if __name__ == '__main__': main()\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines.count("[0.5 0.5 0.5]") == 2
    assert lines[-1] == "True"
    assert lines.count("__main__") == 1


# --------------------------------------------------------------------------------------------- where there may be none


def processes_of(n_workers: int | None) -> tuple[int, list[int]]:
    """Made where this is called: that process, and those of the envs."""
    env = MultiTaskVecEnv([partial(make_troubled, task) for task in range(M)], n_workers=n_workers)
    pids = env.env_method("pid")
    env.reset()
    env.step(np.zeros((M, 2)))
    env.close()
    return os.getpid(), pids


def test_in_a_pool() -> None:
    """Its processes are daemonic: many, so that each has no workers unless it is told to."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        own, pids = pool.apply(processes_of, (None,))
        assert set(pids) == {own}
        own, pids = pool.apply(processes_of, (2,))
        assert len({own, *pids}) == 3
    own, pids = processes_of(None)
    assert own not in pids


@pytest.mark.parametrize("number", [0, 1, 2])
def test_number_from_the_environment(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a grid says it to each of its runs."""
    monkeypatch.setenv(WORKERS, str(number))
    own, pids = processes_of(None)
    assert len({*pids} - {own}) == number


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="Windows has no niceness")
def test_workers_leave_the_cores_to_the_learner() -> None:
    env = make_troubled_env(n_workers=1)
    nicenesses = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (os.getpid(), *env.env_method("pid")[:1])]
    assert nicenesses[1] == min(nicenesses[0] + 5, 19)
    env.close()


def test_a_number_from_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "auto")
    with pytest.raises(ConfigurationError, match="SB3_SOFTMOD_WORKERS must be a number of processes, not 'auto'"):
        processes_of(None)


def test_where_signals_lack_the_names_of_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "pthread_sigmask"):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, "sched_getaffinity")
    env = make_troubled_env()
    env.reset()
    os.kill(env.env_method("pid")[0], 9)
    with pytest.raises(EnvError, match=r"A worker died: process \d+ ended with exit code -9; killed processes often"):
        env.step(np.zeros((M, 2)))
    env = make_troubled_env(n_workers=1)
    env.env_method("set_wrapper_attr", "trouble", "die")
    env.reset()
    with pytest.raises(EnvError, match=r"A worker died: process \d+ ended with exit code 3\. Its envs: env 0"):
        env.step(np.ones((M, 2)))


def test_a_python_that_cannot_be_started() -> None:
    multiprocessing.set_executable("/no/such/python")
    try:
        with pytest.raises(EnvError, match=r"A worker process cannot be started: .*/no/such/python"):
            make_troubled_env(n_workers=1)
    finally:
        multiprocessing.set_executable(sys.executable)


def test_workers_know_the_path_and_the_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules beside a script are found, and the environment is that of now."""
    (tmp_path / "beside_the_script.py").write_text(
        "import os, sys\n"
        "from point_mass import PointMass\n"
        "class Env(PointMass):\n"
        "    def facts(self): return sys.argv[1:], os.environ['OF_NOW'], os.environ['OMP_NUM_THREADS'], os.getcwd()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1e-3"])
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.chdir(tmp_path)
    from beside_the_script import Env  # type: ignore[import-not-found]

    for now in ("first", "second"):
        monkeypatch.setenv("OF_NOW", now)
        env = make_multitask_env({"a": partial(Env, 0)}, n_workers=1)
        assert env.env_method("facts") == [(["--lr", "1e-3"], now, "1", str(tmp_path))]
        env.close()
