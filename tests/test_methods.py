"""The registry of methods: on real Meta-World, in tables, and complete."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from every_method import EVERY_METHOD
from point_mass import make_point_mass_env
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod import ConfigurationError, MultiTaskSAC, make_metaworld_env
from sb3_softmod.cli import main
from sb3_softmod.methods import METHODS, get_method, join_kwargs
from sb3_softmod.policies import POLICIES
from sb3_softmod.runs.parameters import count_parameters

TASKS = ["reach-v3", "drawer-close-v3"]


@pytest.fixture(scope="module")
def metaworld() -> Iterator[VecEnv]:
    env = make_metaworld_env(TASKS, goals="fixed", max_episode_steps=15, n_workers=0, seed=0)
    yield env
    env.close()


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_trains_on_meta_world(name: str, metaworld: VecEnv, tmp_path: Path) -> None:
    """Full-size networks, 25 gradient steps, all logs finite; saved and loaded, it acts as before.

    But for BRC's critics: with their 134 million parameters, the file would have 2 GB.
    """
    metaworld.seed(0)
    size: dict[str, Any] = dict(policy_kwargs=dict(critic_options=dict(width=256))) if name == "brc" else {}
    model = METHODS[name].make(metaworld, batch_size=16, learning_starts=40, buffer_size=2000, seed=0, **size)
    before = {key: p.detach().clone() for key, p in model.policy.named_parameters()}
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(2 * 46)
    with (tmp_path / "progress.csv").open() as file:
        log = list(csv.DictReader(file))[-1]
    assert int(log["train/n_updates"]) == 24  # when the third episodes ended, before the step that follows
    for metric in ("critic_loss", "actor_loss", "ent_coef_loss", "q_value"):
        for key in (f"train/{metric}", *(f"{metric}/{task}" for task in TASKS)):
            assert math.isfinite(float(log[key])), key
    moved = {key for key, p in model.policy.named_parameters() if not th.equal(p, before[key])}
    assert moved == set(before)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model")
    assert loaded.task_names == TASKS
    obs = metaworld.reset()
    assert isinstance(obs, np.ndarray)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_single_task_sac_is_a_run_of_its_own_for_each_task() -> None:
    """What happens in the other tasks changes nothing in a task: network, temperature and optimizer."""
    models = []
    for scale in (1.0, -3.0):
        model = METHODS["single_task_sac"].make(
            make_point_mass_env(4), policy_kwargs=dict(net_arch=[16, 16]), batch_size=32, buffer_size=4000, seed=0
        )
        model.set_logger(Logger(folder=None, output_formats=[]))
        rng = np.random.default_rng(0)
        obs = np.concatenate([rng.normal(size=(200, 4, 2)), np.tile(np.eye(4), (200, 1, 1))], -1).astype(np.float32)
        for row in range(199):
            reward = rng.normal(size=4) * [1, scale, scale, scale]
            actions = rng.uniform(-1, 1, (4, 2))
            model.replay_buffer.add(obs[row], obs[row + 1], actions, reward, np.zeros(4, bool), [{}] * 4)  # type: ignore[union-attr]
        th.manual_seed(1)
        np.random.seed(1)
        model.train(50, 32)
        models.append(model)
    one, other = (model.policy.state_dict() for model in models)
    for name, p in one.items():  # [E, M, ...]
        assert th.equal(p[:, 0], other[name][:, 0]), name
        assert not th.allclose(p[:, 1:], other[name][:, 1:]), name
    temperatures = [model.log_ent_coef for model in models]
    assert temperatures[0] is not None
    assert temperatures[1] is not None
    assert temperatures[0][0] == temperatures[1][0]


def test_the_registry_is_complete() -> None:
    ours = {method.policy for method in METHODS.values() if isinstance(method.policy, str)}  # others' are classes
    assert ours == set(POLICIES)
    titles = [method.title for method in METHODS.values()]
    assert len(set(titles)) == len(titles)
    for title in ("MT-SAC", "MT-MH-SAC", "Mix-Expert", "Hard Routing", "Ours (Shallow)", "Ours (Deep)"):
        assert title in titles  # Table 1


def test_make_adds_to_the_methods_options() -> None:
    env = make_point_mass_env(4)
    model = METHODS["softmod_shallow_wo_obs_balance"].make(env, policy_kwargs=dict(module_dim=8), gamma=0.5)
    options: Any = model.actor.network.options  # type: ignore[union-attr]
    assert (options.module_dim, options.num_layers, options.condition_on_obs) == (8, 2, False)
    assert (model.loss_weighting, model.gamma) == ("uniform", 0.5)
    again = METHODS["softmod_shallow_wo_obs_balance"].make(env)
    assert again.actor.network.options.module_dim == 256  # type: ignore[union-attr]  # the registry is not written to


def test_sizes_of_the_network_are_those_of_its_critics() -> None:
    """Also where they replace all that a method says of its critics alone."""
    for sizes, expected in (
        (dict(width=6), {"width": 6, "critic_options": {"num_blocks": 2}}),
        (dict(width=6, num_blocks=1), {"width": 6}),
        (dict(width=6, num_blocks=1, critic_options=dict(width=8)), {"width": 6, "critic_options": {"width": 8}}),
    ):
        joined = join_kwargs(METHODS["brc"].default_kwargs, sizes)
        assert joined == {"num_blocks": 1, **expected}
    model = METHODS["brc"].make(make_point_mass_env(2), buffer_size=10, policy_kwargs=dict(width=6, num_blocks=1))
    assert sum(p.numel() for p in model.critic.parameters()) < 10_000


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Unknown method 'mt_mhsac': did you mean 'mt_mh_sac'"):
        get_method("mt_mhsac")


@pytest.mark.parametrize(
    ("name", "num_tasks", "actor", "critic"),
    [
        ("softmod_shallow", 10, 391_828, 389_830),
        ("softmod_deep", 10, 555_184, 553_172),
        # (39 + M) x 400, two times 400 x 400, 400 x 8 of each head, and biases; a critic reads 43 and has one output.
        ("mt_sac", 50, 89 * 400 + 400 + 2 * 160_400 + 3_208, 93 * 400 + 400 + 2 * 160_400 + 401),
        ("mt_mh_sac", 50, 89 * 400 + 400 + 2 * 160_400 + 50 * 3_208, 93 * 400 + 400 + 2 * 160_400 + 50 * 401),
        ("mt_mh_sac_5_wide", 50, 90 * 600 + 4 * 360_600 + 50 * 4_808, 94 * 600 + 4 * 360_600 + 50 * 601),
        ("single_task_sac", 3, 3 * (40 * 400 + 2 * 160_400 + 3_208), 3 * (44 * 400 + 2 * 160_400 + 401)),
    ],
)
def test_counted_parameters(name: str, num_tasks: int, actor: int, critic: int) -> None:
    counts = count_parameters(METHODS[name], num_tasks)
    assert (counts.actor, counts.critic) == (actor, critic)


def test_counts_are_those_of_the_policies() -> None:
    env = make_metaworld_env(TASKS, goals="fixed", n_workers=0)
    for name in ("care", "film", "hard_routing"):
        model = METHODS[name].make(env, buffer_size=100)
        counts = count_parameters(METHODS[name], 2)
        assert sum(p.numel() for p in model.actor.parameters()) == counts.actor
        assert sum(p.numel() for p in model.critic.parameters()) == 2 * counts.critic
    env.close()


def rows(out: str) -> dict[str, list[str]]:
    """The numbers of each method in a printed table."""
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        for method in METHODS.values():
            title, _, numbers = line.strip().partition("  ")
            if title == method.title:
                found[title] = numbers.split()
    return found


def test_table_of_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "params", "--env", "MT50"]) == 0
    out = capsys.readouterr().out
    assert "(M = 50" in out
    found = rows(out)
    assert found["Ours (Deep)"] == ["571,184", "1.00", "569,172", "1.00", "1.0"]
    assert found["MT-MH-SAC-6"] == ["998,400", "1.75", "859,650", "1.51", "2.4*"]
    assert found["PaCo"] == ["6,801,160", "11.91", "6,777,020", "11.91"]  # 20 sets of parameters on MT50
    assert "* Ours differs" in out
    assert main(["table", "params", "--env", "MT50-Fixed"]) == 0
    assert rows(capsys.readouterr().out) == found  # whatever the goals
    assert main(["table", "params", "--env", "reach-v3"]) == 0  # no column of the paper
    out = capsys.readouterr().out
    assert "*" not in out
    assert rows(out)["MT-MH-SAC"] == rows(out)["MT-SAC"]  # with one task they are the same network


def test_table_of_an_unknown_set(capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(["table", "params", "--env", "MT51"]) == 2
    assert "Unknown task or task set 'MT51': did you mean 'MT50'" in capsys.readouterr().err
