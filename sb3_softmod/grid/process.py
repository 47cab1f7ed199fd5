"""One run in a process of its own, from both sides: who starts it, and what the process does.

``python -m sb3_softmod.grid.process FOLDER RESOURCES... -- ARGUMENTS...`` claims the folder of a cell, then does what
``sb3-softmod train`` does: begins the run, or goes on with it from its newest checkpoint. Its standard input is the
leash: when the other end is closed, by whoever started the process or by that one's death, the run writes a checkpoint
and ends. So a run never outlives who could tell of it, and nothing but the leash is needed to end one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_softmod.common.errors import SoftModError
from sb3_softmod.common.files import make_folder
from sb3_softmod.grid.claims import Claim
from sb3_softmod.grid.folder import (
    ATTEMPT,
    FAILURE,
    LOG,
    QUEUED,
    clear_beginning,
    is_finished,
    is_written,
    next_arguments,
)

if TYPE_CHECKING:
    from sb3_softmod.grid.cells import Cell


class Outcome(Enum):
    """How a process ended; the values are exit codes."""

    FINISHED = 0
    #: It raised, or was killed.
    FAILED = 1
    #: Asked to end, it has written a checkpoint.
    STOPPED = 3
    #: Somebody else has the cell.
    CLAIMED = 75


@dataclass(frozen=True)
class Order:
    """What a process needs to know, in plain values: it may go to another machine.

    :param folder: of the cell
    :param arguments: of ``train``, without folders
    :param resources: those among them that a run may go on with
    :param environment: variables that are set for it
    """

    folder: Path
    arguments: tuple[str, ...]
    resources: tuple[str, ...]
    environment: Mapping[str, str]

    @classmethod
    def of(cls, cell: Cell) -> Order:
        """The order for a cell."""
        resources = cell.resources
        environment = {**resources.environment(), "PYTHONUNBUFFERED": "1"}  # the log is read while it is written
        # A worker of Ray may have none, and a run has a folder of its own: modules lie where the command is given.
        paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), os.curdir]
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
        if "--track" in cell.options:  # a run that goes on is the same run there
            environment |= {"WANDB_RUN_ID": cell.name.replace("/", "-"), "WANDB_RESUME": "allow"}
        return cls(cell.folder, tuple(cell.arguments()), tuple(resources.arguments()), environment)


class RunProcess:
    """A run that was started.

    :param order: what to run
    :param gpus: the GPUs that it may see, as in CUDA_VISIBLE_DEVICES; None leaves that as it is
    """

    def __init__(self, order: Order, gpus: str | None = None) -> None:
        make_folder(order.folder)
        environment = {**os.environ, **order.environment}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        command = [sys.executable, "-m", __name__, str(order.folder), *order.resources, "--", *order.arguments]
        with (order.folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=order.folder,  # for what packages such as wandb leave behind
                start_new_session=True,  # Ctrl-C in a terminal goes to all of a group: the leash alone is to end a run
            )

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self.stop()
        return Outcome(code) if code in {each.value for each in Outcome} else Outcome.FAILED

    def wait(self) -> Outcome:
        """How it ended, once it has."""
        self._process.wait()
        outcome = self.poll()
        assert outcome is not None
        return outcome

    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def reason(self) -> str:
        """What its exit code says of why it failed; nothing if that is in its log."""
        code = self._process.returncode
        if code is None or code >= 0:
            return ""
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", by the system if memory ran out" if name == "SIGKILL" else "")


def main(argv: Sequence[str]) -> int:
    """Train the cell of a folder; the exit code is one of :class:`Outcome`.

    :param argv: folder, resources, "--", arguments of ``train``
    """
    folder, split = Path(argv[0]), list(argv).index("--")
    resources, arguments = argv[1:split], argv[split + 1 :]
    claim = Claim.take(folder, on_lost=lambda: os._exit(Outcome.CLAIMED.value))
    if claim is None:  # found out before torch is loaded, which takes a while
        return Outcome.CLAIMED.value
    try:
        return _train(folder, resources, arguments).value
    finally:
        claim.release()


def _train(folder: Path, resources: Sequence[str], arguments: Sequence[str]) -> Outcome:
    if (outcome := _elsewhere(folder)) is not None:
        return outcome

    from sb3_softmod.learner.acceleration import keep_memory
    from sb3_softmod.zoo.train import train

    if (outcome := _elsewhere(folder)) is not None:  # meanwhile: these imports take seconds
        return outcome
    for said in (FAILURE, QUEUED):
        (folder / said).unlink(missing_ok=True)
    clear_beginning(folder, arguments)
    command = next_arguments(folder, arguments, resources)
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    print(f"{ATTEMPT}{now}, process {os.getpid()}: sb3-softmod train {' '.join(command)}", flush=True)
    threading.Thread(target=_watch, args=(signal.getsignal(signal.SIGTERM),), daemon=True).start()
    keep_memory()
    try:
        train(command)
    except SoftModError as error:
        print(f"sb3-softmod: {error}", file=sys.stderr)
        return Outcome.FAILED
    except Exception:
        traceback.print_exc()
        return Outcome.FAILED
    return Outcome.FINISHED if is_finished(folder) else Outcome.STOPPED


def _elsewhere(folder: Path) -> Outcome | None:
    """What others have made of a cell."""
    if is_finished(folder):
        return Outcome.FINISHED
    return Outcome.CLAIMED if is_written(folder) else None


def _watch(before: object) -> None:
    """End the training with a checkpoint once the leash is cut.

    :param before: the handler of SIGTERM while nothing listens to it: before the training, and once one has come, as
        Slurm sends it to every process; a second one would end the training without its checkpoint
    """
    while os.read(0, 1):  # not of sys.stdin, whose lock a thread would hold to the end
        pass
    while signal.getsignal(signal.SIGTERM) == before:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
