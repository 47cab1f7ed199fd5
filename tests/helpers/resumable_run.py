"""A tiny training that can be interrupted anywhere, what it ended with, and processes that run it.

python tests/helpers/resumable_run.py --serve
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from worker_envs import M, make_restless

from sb3_softmod import MultiTaskReplayBuffer, MultiTaskSAC, MultiTaskVecEnv, SoftModSAC, make_metaworld_env
from sb3_softmod.common.task_observation import num_tasks_of
from sb3_softmod.saving.checkpoint_callback import CheckpointCallback

#: Steps of the vectorised env until the training of :func:`run` is finished.
STEPS = 45
#: A process that takes longer hangs: seconds.
PATIENCE = 300


def make_env(n_workers: int = 0, **kwargs: Any) -> MultiTaskVecEnv:
    """Envs with randomness and a history of their own, and episodes of at most 20 steps."""
    return MultiTaskVecEnv(
        [partial(make_restless, task, num_tasks=M) for task in range(M)], n_workers=n_workers, **kwargs
    )


def make_metaworld(n_workers: int = 0) -> MultiTaskVecEnv:
    """Two tasks of Meta-World, with short episodes."""
    return make_metaworld_env(
        ["reach-v3", "button-press-topdown-v3"], seed=0, n_workers=n_workers, max_episode_steps=15
    )


def make_model(env: Any, **kwargs: Any) -> MultiTaskSAC:
    """A model that learns from the fourth step on, and whose replay buffer soon wraps around."""
    tasks = num_tasks_of(env)
    options: dict[str, Any] = dict(
        buffer_size=24 * tasks,
        learning_starts=4 * env.num_envs,
        batch_size=4 * tasks,
        policy_kwargs=dict(embedding_dim=8, module_dim=8),
        seed=0,
    )
    return SoftModSAC("SoftModPolicy", env, **{**options, **kwargs})


class Log(KVWriter):
    """Calls a function with each log, but for what depends on the clock."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        clock = ("time/fps", "time/time_elapsed")
        self._write({"step": step, **{key: value for key, value in key_values.items() if key not in clock}})

    def close(self) -> None:
        pass


def logged(model: MultiTaskSAC) -> list[dict[str, Any]]:
    """The logs of a model from now on."""
    lines: list[dict[str, Any]] = []
    model.set_logger(Logger(None, [Log(lines.append)]))
    return lines


def everything(model: MultiTaskSAC) -> dict[str, bytes]:
    """All that a training ended with, to the bit: what it learned, what it kept, and what it would do next."""
    found = {name: value.numpy().tobytes() for name, value in model.policy.state_dict().items()}
    optimizers = [("actor", model.actor.optimizer), ("critic", model.critic.optimizer)]
    if model.ent_coef_optimizer is not None:
        assert model.log_ent_coef is not None
        optimizers.append(("temperatures", model.ent_coef_optimizer))
        found["log_ent_coef"] = model.log_ent_coef.detach().numpy().tobytes()
    if model.learned_weights is not None:
        found["learned weights"] = repr(model.learned_weights.progress()).encode()
    for owner, optimizer in optimizers:
        found[f"learning rate of {owner}"] = np.float64(optimizer.param_groups[0]["lr"]).tobytes()
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                found[f"{name} of parameter {number} of {owner}"] = value.numpy().tobytes()
    counts = (model.num_timesteps, model._n_updates, model._episode_num, model._current_progress_remaining)
    found["counts"] = repr(counts).encode()
    found["episodes"] = repr((list(model.ep_success_buffer or []), model.episode_statistics.means())).encode()
    draws = (th.rand(3).tolist(), np.random.random(3).tolist(), random.random(), model.action_space.sample().tolist())
    found["generators"] = repr(draws).encode()

    buffer = model.replay_buffer
    assert buffer is not None
    if isinstance(buffer, MultiTaskReplayBuffer):
        found["stored"] = buffer.added_per_task.tobytes()
    th.manual_seed(0)
    np.random.seed(0)
    samples = [buffer.sample(20 * model.num_tasks, env=model.get_vec_normalize_env()) for _ in range(20)]
    found["replay buffer"] = pickle.dumps([[x.numpy() for x in batch if x is not None] for batch in samples])

    env = model.get_env()
    assert env is not None
    action = np.zeros((env.num_envs, *env.action_space.shape), np.float32)  # type: ignore[misc]
    steps = [env.step(action)[:3] for _ in range(30)]  # which is more than an episode
    found["what the envs do next"] = pickle.dumps(steps)
    return found


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


def never() -> After:
    return After(10**6, lambda: None)


class Pause(BaseCallback):
    """Waits in one step, for longer than any test, and says so in a file.

    :param path: of the file
    :param at: the step
    """

    def __init__(self, path: str, at: int) -> None:
        super().__init__()
        self.path, self.at = path, at

    def _on_step(self) -> bool:
        if self.n_calls == self.at:
            Path(self.path).touch()
            time.sleep(PATIENCE)
        return True


def run(folder: str, kind: str = "restless", n_workers: int = 2, pause_at: int = -1, **_: Any) -> None:
    """Train, from the newest checkpoint if there is one, and say in files of the folder how that went.

    ``starts``: a line with the step at each start; ``log``: a line for each log; ``final.pkl``: :func:`everything`.
    """
    th.set_num_threads(1)
    path = Path(folder)
    env = make_metaworld(n_workers) if kind == "metaworld" else make_env(n_workers, n_envs=2)
    if any((path / "checkpoints").glob("[0-9]*")):
        model: MultiTaskSAC = SoftModSAC.resume(path, env)
        steps = None
    else:
        model, steps = make_model(env, overlap=True), STEPS * env.num_envs
    _append(path / "starts", str(model.num_timesteps))
    model.set_logger(Logger(None, [Log(lambda line: _append(path / "log", json.dumps(line, default=float)))]))
    callback = CheckpointCallback(path, save_freq=3)
    model.learn(steps, [callback, Pause(f"{path}/pausing", pause_at)], log_interval=1)
    if callback.ended_by is None:
        (path / "final.partial").write_bytes(pickle.dumps(everything(model)))
        (path / "final.partial").replace(path / "final.pkl")
    env.close()


def _append(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")  # at once, so that no half of it is left behind


class Runs:
    """Processes that run :func:`run`: forks of one that has loaded everything, so that they start at once."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, **options: Any) -> int:
        """Start a run in a process group of its own; its id.

        :param options: of :func:`run`, or ``ignored``: a signal that it ignores
        """
        folder.mkdir(exist_ok=True)
        return self._ask({"folder": str(folder), **options})

    def wait(self, pid: int) -> int:
        """Wait until it ended; its exit status, or minus the signal that killed it."""
        return self._ask(pid)

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def _ask(self, question: Any) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(question), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def _serve() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            print(os.waitstatus_to_exitcode(os.waitpid(question, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _live(question)


def _live(options: dict[str, Any]) -> None:
    """The life of a run's process."""
    status = 1
    try:
        os.setsid()
        signal.alarm(PATIENCE)
        if "ignored" in options:
            signal.signal(options["ignored"], signal.SIG_IGN)
        for descriptor, name in (
            (0, os.devnull),
            (1, f"{options['folder']}/output"),
            (2, f"{options['folder']}/errors"),
        ):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
        run(**options)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()


def names(path: Path) -> list[str]:
    """All that is in the folder, but for the lock."""
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file() and each.name != ".lock")
