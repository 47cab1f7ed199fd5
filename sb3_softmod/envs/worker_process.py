"""Starts workers and talks to them. All have the same methods, whether they are a process or not."""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Pipe
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.spawn import get_executable
from typing import Any

import cloudpickle
import numpy as np

from sb3_softmod.common.errors import EnvError, SoftModError
from sb3_softmod.envs.worker import EnvGroup

#: How long a worker that was hung up on may take to close its envs, in seconds.
PATIENCE = 5.0

#: What a worker process runs; its argument is its end of the connection.
_PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # Ctrl-C is for the parent, from the start
    "from multiprocessing import connection as c; "
    "connection = getattr(c, 'PipeConnection', c.Connection)(int(sys.argv[1])); "  # the former on Windows alone
    "sys.path, sys.argv = connection.recv(); "
    "from sb3_softmod.envs.worker import serve; serve(connection)"
)

#: Of the numerical libraries: the workers share the cores.
_THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}

#: The exit code of a process that got SIGKILL, a name that Windows does not have.
_KILLED = -9


class WorkerLost(Exception):
    """A worker is of no use any more; the message says what happened to it."""


class AnswerLost(SoftModError):
    """Nobody asked, or an exception such as Ctrl-C came between the answer and whoever asked."""


class LocalWorker:
    """A worker in this process, for debugging: it works when it is asked for its answer."""

    #: ``[its envs]`` of :func:`.step_dtype`: actions go in, everything else comes out.
    steps: np.ndarray
    _group: EnvGroup | None = None
    _question: tuple[str, tuple[Any, ...]] | None = None

    def send(self, command: str, *arguments: Any) -> None:
        """Ask for a method of :class:`.EnvGroup`, or ``set_up`` for its constructor.

        An answer that nobody received is dropped.
        """
        self._question = command, arguments

    def receive(self) -> Any:
        """The answer to the last question; raises what the envs raised.

        :raises AnswerLost: if there is none
        """
        if self._question is None:
            raise AnswerLost
        # Whatever interrupts it: nothing is done twice.
        (command, arguments), self._question = self._question, None
        if command == "set_up":
            makers, copies, auto_reset = arguments
            self._group = EnvGroup(makers, copies, auto_reset=auto_reset)
            return None
        return getattr(self._group, command)(*arguments)

    def attach(self, dtype: np.dtype, known: dict[str, Any], size: int) -> None:
        """Make ``steps``; see :meth:`.EnvGroup.attach`."""
        assert self._group is not None
        self._group.attach(dtype, known, None)
        self.steps = self._group.steps

    def hang_up(self) -> None:
        """Nothing will be asked any more."""

    def close(self) -> None:
        """Close the envs."""
        if self._group is not None:
            self._group.close()


class WorkerProcess:
    """A worker in a process of its own.

    The process is a plain one, not one of multiprocessing's. Those would run the user's script again, which loads torch
    and, without a main guard, starts workers itself; what a task maker needs of the script travels with it
    (cloudpickle). They may not be children of a ``multiprocessing.Pool``'s processes, and at the end of this process
    multiprocessing would wait for them before it lets anybody hang up.

    :raises EnvError: if it cannot be started
    """

    #: As in :class:`LocalWorker`, shared with the process.
    steps: np.ndarray

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._connection, theirs = Pipe()
        try:
            self._process = _start(theirs)
        except OSError as error:
            self._connection.close()
            raise EnvError(f"A worker process cannot be started: {error}") from error
        finally:
            theirs.close()  # so that the death of the process closes the pipe
        self._wait = _waits_for(self._connection)
        #: Whether an answer is to come; None while a message is on its way, and for good if it was cut short.
        self._asked: bool | None = False
        self._post(pickle.dumps((sys.path, sys.argv)), asks=False)

    def send(self, command: str, *arguments: Any) -> None:
        """As :meth:`LocalWorker.send`; the worker begins at once."""
        message = b"" if command == "step" else cloudpickle.dumps((command, arguments))
        if self._asked:
            with suppress(WorkerLost):  # receive() tells
                self._take()
        if self._asked is not None:
            self._post(message, asks=True)

    def receive(self) -> Any:
        """As :meth:`LocalWorker.receive`.

        :raises WorkerLost: if it died, or an exception such as Ctrl-C cut a message short
        """
        message = self._take()
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

    def hang_up(self) -> None:
        """Let the process close its envs and end."""
        if sys.platform != "win32" and not self._connection.closed:
            # A process that was forked from this one may hold the connection open as well.
            with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def close(self) -> None:
        """Hang up, and see to it that the process ends."""
        self.hang_up()
        if self._exit_code() is None:
            self._process.kill()
            self._exit_code()
        if self._memory is not None:
            del self.steps  # it points into the memory
            self._memory.close()
            self._memory = None

    def _post(self, message: bytes, *, asks: bool) -> None:
        self._asked = None
        with suppress(ConnectionError):  # receive() tells how the worker ended
            self._connection.send_bytes(message)
        self._asked = asks

    def _take(self) -> bytes:
        """The next message."""
        if self._asked is None:
            raise WorkerLost("A worker was cut off: an exception such as Ctrl-C came in the middle of a message.")
        if not self._asked:
            raise AnswerLost
        try:
            self._wait()  # where Ctrl-C comes as a rule; then nothing is lost
            self._asked = None
            message = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            self._asked = True  # the next question, too, is answered by this
            code = self._exit_code()
            hint = "; killed processes often mean that the memory is full" if code == _KILLED else ""
            raise WorkerLost(f"A worker died: process {self._process.pid} ended with exit code {code}{hint}.") from None
        self._asked = False
        return message

    def _exit_code(self) -> int | None:
        """That of a process that is about to end; None if it does not."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        return self._process.returncode


def _start(connection: Any) -> subprocess.Popen[bytes]:
    """Start a worker process that has one end of a connection. Nothing of this process changes meanwhile."""
    handle = connection.fileno()
    inherited: dict[str, Any]
    if sys.platform == "win32":
        os.set_handle_inheritable(handle, True)
        inherited = {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})}
    else:
        inherited = {"pass_fds": [handle]}
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return subprocess.Popen(
        [get_executable(), *flags, "-c", _PROGRAM, str(handle)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **_THREADS},
        **inherited,
    )


def _waits_for(connection: Any) -> Callable[[], Any]:
    """A function that waits for a message. ``poll(None)`` of the connection makes a new selector each time (8 µs)."""
    if sys.platform == "win32":
        return partial(connection.poll, None)
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return poll.poll
