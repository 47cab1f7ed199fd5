"""The processes that a process has started, as Linux tells them."""

from __future__ import annotations

from pathlib import Path


def workers_of(pid: int) -> list[int]:
    """The worker processes of a process."""
    return [child for child in _children(pid) if b"sb3_softmod.envs.worker" in _command(child)]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it ended
        return []
    return [int(child) for text in lists for child in text.split() if is_alive(int(child))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended
        return b""
