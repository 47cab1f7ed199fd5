"""SB3's n-step buffer: a batch has discounts of its own, and SB3's SAC learns the same from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th
from point_mass import make_point_mass_env
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed

from sb3_softmod import ConfigurationError, MultiTaskSAC, MultiTaskVecNormalize

M = 4


class Losses(KVWriter):
    """Keeps what is logged of the losses."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.found.append((key_values["train/critic_loss"], key_values["train/actor_loss"]))

    def close(self) -> None:
        pass


def losses_of(model: SAC, updates: int, batch_size: int) -> th.Tensor:
    """The critics' and the actor's loss of each update, ``[updates, 2]``."""
    kept = Losses()
    model.set_logger(Logger(folder=None, output_formats=[kept]))
    for _ in range(updates):
        model.train(1, batch_size)
        if isinstance(model, MultiTaskSAC):
            model.dump_logs()
        else:
            model.logger.dump()
    return th.tensor(kept.found)


@pytest.mark.parametrize("num_tasks", [1, M])
@pytest.mark.parametrize("n_critics", [1, 2, 3])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_losses_are_those_of_sb3(n_steps: int, n_critics: int, num_tasks: int) -> None:
    """With episodes that are cut and that end, on the same transitions; a temperature that is not learned, since SB3
    has one for all tasks.
    """
    common: dict[str, Any] = dict(
        ent_coef=0.1,
        gamma=0.9,
        learning_starts=200,
        batch_size=24,
        policy_kwargs=dict(net_arch=[16, 16], n_critics=n_critics),
        seed=3,
        device="cpu",
    )
    steps = dict(n_steps=n_steps)
    ours = MultiTaskSAC(
        "MlpPolicy",
        make_point_mass_env(num_tasks, horizon=7),
        replay_buffer_class=NStepReplayBuffer,
        replay_buffer_kwargs=steps,
        **common,
    ).learn(200)
    theirs = SAC(
        "MlpPolicy",
        make_point_mass_env(num_tasks, horizon=7),
        replay_buffer_class=NStepReplayBuffer,
        replay_buffer_kwargs=dict(gamma=0.9, **steps),
        **common,
    ).learn(200)
    found = []
    for model in (ours, theirs):
        assert isinstance(model.replay_buffer, NStepReplayBuffer)
        model.replay_buffer.timeouts[5:40:9] = 0  # there an episode ended by itself
        set_random_seed(0)
        found.append(losses_of(model, 10, 24))
    assert found[0].std(0).min() > 1e-3
    if num_tasks == 1:  # ours is otherwise the mean over tasks, of which a batch of SB3's holds some more often
        assert (found[0] - found[1]).abs().max() < 1e-5
    for (name, p), q in zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True):
        assert (p - q).abs().max() < 3e-6, name


class Shaped(ReplayBuffer):
    """Batches whose discounts have another shape."""

    shape: tuple[int, ...] = (-1, 1)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = super().sample(batch_size, env)
        discounts = th.linspace(0.5, 1, batch_size)
        return batch._replace(discounts=discounts.view(self.shape))


@pytest.mark.parametrize("n_critics", [1, 2])
def test_the_shape_of_the_discounts_does_not_matter(n_critics: int) -> None:
    found = []
    for shape in ((-1, 1), (-1,)):
        kind = type("Shaped", (Shaped,), dict(shape=shape))
        options: dict[str, Any] = dict(net_arch=[8], n_critics=n_critics)
        model = MultiTaskSAC(
            "MTMlpPolicy",
            make_point_mass_env(2),
            replay_buffer_class=kind,
            batch_size=8,
            learning_starts=20,
            policy_kwargs=options,
            seed=0,
            device="cpu",
        )
        found.append(th.cat([p.flatten() for p in model.learn(40).critic.parameters()]))
    assert th.equal(*found)


def test_the_buffer_discounts_as_the_model_does(tmp_path: Path) -> None:
    def make(**kwargs: Any) -> MultiTaskSAC:
        env = make_point_mass_env(1)
        return MultiTaskSAC("MTMlpPolicy", env, gamma=0.5, replay_buffer_class=NStepReplayBuffer, **kwargs)

    model = make()
    assert model.replay_buffer.gamma == 0.5  # type: ignore[union-attr]
    model.save(tmp_path / "model")
    loaded = MultiTaskSAC.load(tmp_path / "model", env=make_point_mass_env(1), gamma=0.8)
    assert loaded.replay_buffer.gamma == 0.8  # type: ignore[union-attr]
    assert make(replay_buffer_kwargs=dict(gamma=0.7)).replay_buffer.gamma == 0.7  # type: ignore[union-attr]


def test_rewards_that_are_normalised_by_task_need_our_buffer() -> None:
    env = MultiTaskVecNormalize(make_point_mass_env(M))
    with pytest.raises(ConfigurationError, match="only MultiTaskReplayBuffer says of which task a reward is"):
        MultiTaskSAC("MTMlpPolicy", env, replay_buffer_class=NStepReplayBuffer)
    env = MultiTaskVecNormalize(make_point_mass_env(M), norm_reward=False)
    options: dict[str, Any] = dict(batch_size=8, learning_starts=20, policy_kwargs=dict(net_arch=[8]), device="cpu")
    assert MultiTaskSAC("MTMlpPolicy", env, replay_buffer_class=NStepReplayBuffer, **options).learn(40)._n_updates == 5
