"""``run.json``: what a run was, where it ran, and how it went."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_softmod.common.files import read_json, write_text
from sb3_softmod.evaluation.callback import MultiTaskEvalCallback
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer

#: Of a processor, as Linux calls them.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


class RunManifest:
    """Writes the manifest when a run begins, with status "running", and again when its ``with`` block ends.

    A run whose status is still "running" was killed. One that is resumed keeps what it began with.

    :param path: of the file
    :param model: ready to learn
    :param facts: what only the caller knows: method, tasks, seed, ...
    :param evaluation: while the run learns, if there is one: its results are told, and its env is closed at the end
    """

    #: How the run ended, for the block to say: "finished", "ended early" (by a callback) or "stopped" (to go on later);
    #: "failed" after an exception.
    status = "failed"

    def __init__(
        self, path: Path, model: BaseAlgorithm, facts: dict[str, Any], evaluation: MultiTaskEvalCallback | None
    ) -> None:
        self._path, self._model, self._evaluation = path, model, evaluation
        checkpoint = getattr(model, "resumed_from", None)
        seconds = 0.0 if checkpoint is None else checkpoint.facts["seconds"]
        self._start = time.perf_counter() - seconds
        if checkpoint is not None:
            self._content = read_json(path)
            resumed = {"at": _now(), "env_steps": model.num_timesteps}
            self._content |= {"status": "running", "resumed": [*self._content.get("resumed", []), resumed]}
            self._content.pop("error", None)
            self._write()
            return
        self._content = {
            "status": "running",
            "started": _now(),
            **facts,
            "began_with": _progress(model),
            "network": getattr(model.policy, "network_kwargs", {}),
            "parameters": _parameters(model),
            "hardware": _hardware(),
            "git": _git(),
            "python": platform.python_version(),
            "packages": _packages(),
        }
        self._write()

    def __enter__(self) -> RunManifest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        facts: dict[str, Any] = {}
        if error is not None:
            self.status = "failed"
            facts["error"] = f"{type(error).__name__}: {error}"
        if self._evaluation is not None:
            facts |= self._evaluation.summary()
        progress = _progress(self._model)
        for name in ("gradient_steps", "env_steps_by_task"):  # a model that was trained before brings those
            before = self._content["began_with"][name]
            if isinstance(before, dict):
                progress[name] = {task: steps - before[task] for task, steps in progress[name].items()}
            else:
                progress[name] -= before
        wall_time = round(time.perf_counter() - self._start, 1)
        self._content |= {"status": self.status, "ended": _now(), "wall_time_s": wall_time, **progress, **facts}
        self._write()
        if self._evaluation is not None:  # after the writing, which must not depend on how the env ends
            self._evaluation.eval_env.close()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._content, indent=2, default=str) + "\n")


def _progress(model: BaseAlgorithm) -> dict[str, Any]:
    buffer = getattr(model, "replay_buffer", None)
    by_task = {}
    if isinstance(buffer, MultiTaskReplayBuffer):
        by_task = dict(zip(model.task_names, buffer.added_per_task.tolist(), strict=True))  # type: ignore[attr-defined]
    return {
        "env_steps": model.num_timesteps,
        "env_steps_by_task": by_task,
        "gradient_steps": getattr(model, "_n_updates", 0),
    }


def _parameters(model: BaseAlgorithm) -> dict[str, int]:
    parts = {"policy": model.policy, **{name: getattr(model.policy, name, None) for name in ("actor", "critic")}}
    return {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in parts.items()
        if isinstance(module, th.nn.Module)
    }


def _hardware() -> dict[str, Any]:
    flags = _cpuinfo("flags").split()
    out: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "torch_threads": th.get_num_threads(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    if th.cuda.is_available():
        out["gpus"] = [th.cuda.get_device_name(index) for index in range(th.cuda.device_count())]
    return out


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.partition(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return ""


@cache
def _packages() -> dict[str, str]:
    """The versions of all that is installed."""
    found = (distribution.metadata for distribution in importlib.metadata.distributions())
    return dict(sorted((each["Name"], each["Version"]) for each in found if each["Name"]))  # without what is broken


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that the package runs from, and whether files were changed since; None for no checkout."""

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")  # a venv may lie in the checkout of something else
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
