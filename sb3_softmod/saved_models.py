"""What a saved model says of itself, read without running anything from the file."""

from __future__ import annotations

import json
import zipfile
from typing import Any

from stable_baselines3.common.save_util import open_path


def saved_num_tasks(path: Any) -> int | None:
    """The number of tasks of a saved model.

    :param path: the zip file, or a file object
    :return: M, or None for a model that says none
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("data")).get("num_tasks")
    finally:
        if file is not path:
            file.close()
