"""What README and documentation say, block by block."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: In the order in which commands build on each other.
_FIRST = ("README", "docs/install", "docs/zoo", "docs/results", "docs/runs")


def pages() -> dict[str, str]:
    """The text of README and of each page, by its path without ending."""
    docs = ROOT / "docs"
    found = [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted((docs / "parts").glob("*.md"))]
    texts = {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text() for path in found}
    return {name: texts[name] for name in (*_FIRST, *texts)}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    found = re.findall(r"^```([\w{}-]*)\n(.*?)^```", text, re.M | re.S)
    return [code for name, code in found if name == language]


TASKS = ["reach-v3", "push-v3"]

#: Instead of what would take minutes: patterns, on every page.
SMALLER = {
    r'"coffee-button-v3", seed=1\)': '"coffee-button-v3", seed=1, n_eval_episodes=1)',
    r'tune="routing"\)': 'tune="routing", init="mean")',
    r'"handle-press-v3"\]\)  #': '"handle-press-v3"], n_eval_episodes=1)  #',
    r"episodes=10, trials=100": "episodes=1, trials=12, final_episodes=1, env_kwargs=dict(horizon=20)",
    r'make_metaworld_env\("MT10", seed=0\)': f"make_metaworld_env({TASKS!r}, seed=0, n_workers=0)",
    r'(?<!pretrained\()"MT10"(?!\])': repr(TASKS),
    r"num_tasks=10": "num_tasks=2",
    r"policy_kwargs=policy_kwargs\)": "policy_kwargs=policy_kwargs, n_steps=4, batch_size=8)",
    r"learn\(100_000\)": "learn(8)",
    r'protocol="metaworld"': "n_eval_episodes=1",
    r"MetaWorldAgent\(model\), envs": "MetaWorldAgent(model), envs, num_episodes=1",
    r"eval_freq=10_000": "eval_freq=10, n_eval_episodes=1",
    r'env, Path\("figures"\)\)': 'env, Path("figures"), steps=20)',
    r"every=10_000": "every=10",
    r"save_freq=10_000": "save_freq=5",
}
#: Lines that need what not every machine has, and whether this one has it.
NEEDS = {
    "record_routing(": False,  # a screen; test_routing_video.py
    "make_dm_control_env(": sys.version_info < (3, 13),
    "model.replay_dump(": False,  # test_nonfinite_dumps.py
}


def smaller(code: str) -> str:
    for pattern, replacement in SMALLER.items():
        code = re.sub(pattern, replacement, code)
    lines = code.splitlines()
    return "\n".join(line for line in lines if all(has or not line.startswith(what) for what, has in NEEDS.items()))
