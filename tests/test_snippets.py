"""Every piece of Python in README and documentation runs, page by page, with small budgets."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from documentation import ROOT, TASKS, blocks, pages, smaller

from sb3_softmod import MultiTaskSAC, SoftModSAC, make_metaworld_env
from sb3_softmod.envs.worker_pool import WORKERS
from sb3_softmod.methods import METHODS


def small_model() -> tuple[Any, SoftModSAC]:
    env = make_metaworld_env(TASKS, seed=0, n_workers=0, max_episode_steps=10)
    return env, SoftModSAC("SoftModPolicy", env, buffer_size=100, batch_size=4, policy_kwargs=dict(preset="deep"))


def env_and_model() -> dict[str, Any]:
    env, model = small_model()
    return dict(env=env, model=model, SoftModSAC=SoftModSAC, make_metaworld_env=make_metaworld_env)


def names_of_the_library() -> dict[str, Any]:
    return {**env_and_model(), "MultiTaskSAC": MultiTaskSAC, "METHODS": METHODS}


def saved_model() -> dict[str, Any]:
    names = env_and_model()
    for name in ("mt10", "theirs"):
        names["model"].save(name)
    return names


def envs_of_metaworld() -> dict[str, Any]:
    options: dict[str, Any] = dict(vector_strategy="sync", envs_list=TASKS, use_one_hot=True)
    return {**env_and_model(), "envs": gym.make_vec("Meta-World/custom-mt-envs", **options)}


def my_maker() -> gym.Env:
    return gym.make("Pendulum-v1")


def own_envs() -> dict[str, Any]:
    gym.register("MyEnv-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=200)
    return dict(my_maker=my_maker)


#: What the text around a page's first block says that there is.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/balancing": names_of_the_library,
    "docs/envs": own_envs,
    "docs/files_of_others": saved_model,
    "docs/interruptions": env_and_model,
    "docs/errors": env_and_model,
    "docs/routing": env_and_model,
    "docs/runs": envs_of_metaworld,
    "docs/speed": saved_model,
}
#: tests/deployment/test_docs.py runs it, and looks at what comes out.
ELSEWHERE = "docs/deployment"


@pytest.mark.parametrize("page", [n for n, text in pages().items() if blocks(text, "python") and n != ELSEWHERE])
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if page == "docs/envs":  # whose classes and functions reach worker processes
        monkeypatch.delenv(WORKERS)
    learn = MultiTaskSAC.learn

    def learn_less(self: Any, total_timesteps: int | None = None, *args: Any, **kwargs: Any) -> Any:
        return learn(self, total_timesteps and min(total_timesteps, 40), *args, **kwargs)

    monkeypatch.setattr(MultiTaskSAC, "learn", learn_less)
    before = set(METHODS)
    names: dict[str, Any] = {"__name__": page, **GIVEN.get(page, dict)()}
    try:
        for code in blocks(pages()[page], "python"):
            exec(compile(smaller(code), page, "exec"), names)
    finally:
        for added in set(METHODS) - before:
            del METHODS[added]


def test_links_of_the_readme() -> None:
    """Sphinx follows those of the other pages."""
    targets = re.findall(r"\]\(([^)#]+)", pages()["README"])
    own = [target for target in targets if not target.startswith("https://")]
    assert len(own) > 15
    assert [target for target in own if not (ROOT / target).exists()] == []


def test_no_line_begins_as_a_comment() -> None:
    """Sphinx leaves out lines that begin with a percent sign."""
    assert [line for text in pages().values() for line in text.splitlines() if line.lstrip().startswith("%")] == []
