"""Starts workers and talks to them. All have the same three methods, whether they are a process or not."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType
from typing import Any, Literal

import cloudpickle
import numpy as np

from sb3_softmod.envs.worker import EnvGroup, serve
from sb3_softmod.errors import EnvError

StartMethod = Literal["forkserver", "spawn"]

#: How long a worker that was hung up on may take to close its envs, in seconds.
PATIENCE = 5.0


class WorkerDied(Exception):
    """A worker process is gone; the message says how it ended."""

    def __init__(self, pid: int | None, exit_code: int | None) -> None:
        hint = "; killed processes often mean that the memory is full" if exit_code == -signal.SIGKILL else ""
        super().__init__(f"process {pid} ended with exit code {exit_code}{hint}")


class LocalWorker:
    """A worker in this process, for debugging: it works when it is asked for its answer."""

    #: ``[its envs]`` of :func:`.step_dtype`: actions go in, everything else comes out.
    steps: np.ndarray
    _group: EnvGroup | None = None

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for a method of :class:`.EnvGroup`, or ``set_up`` for its constructor."""
        self._command, self._arguments = command, arguments

    def receive(self) -> Any:
        """The answer to the oldest question; raises what the envs raised."""
        if self._command == "set_up":
            makers, copies, auto_reset = self._arguments
            self._group = EnvGroup(makers, copies, auto_reset=auto_reset)
            return None
        return getattr(self._group, self._command)(*self._arguments)

    def attach(self, dtype: np.dtype, known: dict[str, Any], size: int) -> None:
        """Make ``steps``; see :meth:`.EnvGroup.attach`."""
        assert self._group is not None
        self._group.attach(dtype, known, None)
        self.steps = self._group.steps

    def close(self) -> None:
        """Close the envs."""
        if self._group is not None:
            self._group.close()


class WorkerProcess:
    """A worker in a process of its own.

    :param start_method: of multiprocessing
    """

    #: As in :class:`LocalWorker`, shared with the process.
    steps: np.ndarray

    def __init__(self, start_method: StartMethod) -> None:
        context: Any = multiprocessing.get_context(start_method)
        context.set_forkserver_preload([serve.__module__])  # loaded once for all workers; others ignore it
        self._memory: SharedMemory | None = None
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), name="sb3_softmod worker", daemon=True)
        with _lean_start():
            self._process.start()
        theirs.close()  # so that the death of the process closes the pipe

    def send(self, command: str, *arguments: Any) -> None:
        """As :meth:`LocalWorker.send`; the worker begins at once."""
        message = b"" if command == "step" else cloudpickle.dumps((command, arguments))
        with suppress(ConnectionError):  # receive() tells how the worker ended
            self._connection.send_bytes(message)

    def receive(self) -> Any:
        """As :meth:`LocalWorker.receive`.

        :raises WorkerDied: if it did
        """
        try:
            message = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            self._process.join(PATIENCE)
            raise WorkerDied(self._process.pid, self._process.exitcode) from None
        try:
            answer = pickle.loads(message) if message else None
        except Exception as error:
            raise EnvError(f"An env sent something that cannot be unpickled here: {error}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def attach(self, dtype: np.dtype, known: dict[str, Any], size: int) -> None:
        """As :meth:`LocalWorker.attach`."""
        self._memory = SharedMemory(create=True, size=dtype.itemsize * size)
        self.steps = np.ndarray(size, dtype, self._memory.buf)
        try:
            self.send("attach", dtype, known, self._memory.name)
            self.receive()
        finally:
            self._memory.unlink()  # both ends hold it now: without a name, no end of theirs can leave it behind

    def close(self) -> None:
        """Hang up: the process closes its envs and ends, or is ended."""
        self._connection.close()
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(PATIENCE)
        if self._memory is not None:
            del self.steps  # it points into the memory
            self._memory.close()
            self._memory = None


@contextmanager
def _lean_start() -> Iterator[None]:
    """Let processes start without the user's script, and with one thread for each numerical library.

    multiprocessing would run the script again in each worker: it loads torch and, without a main guard, starts workers
    itself. What a task maker needs of the script travels with it (cloudpickle).
    """
    script = sys.modules["__main__"]
    limits = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    before = {name: os.environ.get(name) for name in limits}
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(limits)
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
