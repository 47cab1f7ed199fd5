"""Files that several processes write, and that are there as a whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sb3_softmod import FileError
from sb3_softmod.common.files import claim_folder, replacing


def test_two_may_write_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("one")
        second.write_text("two")
        assert not path.exists()
    assert path.read_text() == "one"  # who is ready last
    assert [file.name for file in tmp_path.iterdir()] == ["cell.json"]


def test_folders_of_ones_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as several:
        folders = list(several.map(lambda _: claim_folder(tmp_path / "logs" / "MT10_8"), range(24)))
    assert sorted(folders) == sorted(tmp_path / "logs" / f"MT10_{number}" for number in range(8, 32))
    assert [claim_folder(tmp_path / "run").name for _ in range(3)] == ["run", "run_1", "run_2"]
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"Cannot make the folder .*file: "):
        claim_folder(tmp_path / "file" / "MT10_1")


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text("before")

    def write() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise OSError("disk full")

    with pytest.raises(FileError, match=r"Cannot write .*cell\.json: disk full"):
        write()
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["cell.json"]
