"""Snapshots of the routing tell of the training, and leave it alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from point_mass import make_point_mass_env
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_softmod import (
    ConfigurationError,
    MultiTaskSAC,
    MultiTaskVecNormalize,
    SoftModPolicy,
    SoftModSAC,
    SoftModularExtractor,
)
from sb3_softmod.routing.routes import RoutingSamples
from sb3_softmod.routing.snapshots import RoutingSnapshotCallback, RoutingSnapshots

SMALL = dict(embedding_dim=8, num_layers=3, num_modules=2, module_dim=4)


def make(**options: Any) -> SoftModSAC:
    env = MultiTaskVecNormalize(make_point_mass_env(3))
    env.action_space.seed(0)
    settings: dict[str, Any] = dict(batch_size=12, learning_starts=30, buffer_size=300, seed=0, device="cpu")
    return SoftModSAC("SoftModPolicy", env, policy_kwargs={**SMALL, "variant": "official"}, **settings, **options)


@pytest.mark.parametrize("overlap", [False, True])
def test_training_goes_on_as_without_it(tmp_path: Path, overlap: bool) -> None:
    plain = make(overlap=overlap).learn(120)  # first, since both draw from the same global generators
    watched = make(overlap=overlap).learn(120, callback=RoutingSnapshotCallback(tmp_path / "routing.npz", every=3))
    assert len(RoutingSnapshots.load(tmp_path / "routing.npz").steps) > 30
    for mine, other in zip(plain.policy.state_dict().values(), watched.policy.state_dict().values(), strict=True):
        assert th.equal(mine, other)
    assert plain.policy.training == watched.policy.training


def test_what_a_snapshot_holds(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "routing.npz"
    model = make()
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    others = CheckpointCallback(50, str(tmp_path))
    model.learn(200, callback=CallbackList([others, RoutingSnapshotCallback(path, every=60)]))
    taken = RoutingSnapshots.load(path)
    # At the first step that finds every task in the buffer, which SB3 fills after its callbacks; then every 60 steps,
    # and at the end.
    assert taken.steps.tolist() == [6, 66, 126, 186, 201]
    assert taken.task_names == model.task_names
    assert [layer.shape for layer in taken.layers] == [(5, 3, 2, 2), (5, 3, 2, 2), (5, 3, 2)]
    for layer in taken.layers:
        np.testing.assert_allclose(layer.sum(-1), 1, atol=1e-6)
    # The last one is the routing of the model as it is now, over the states that the buffer draws next.
    with th.no_grad():
        observations = model.replay_buffer.sample(64 * 3, env=model.get_vec_normalize_env()).observations  # type: ignore[union-attr]
        routing = model.actor.network.routing(*observations.split([2, 3], 1))  # type: ignore[union-attr, operator]
    for layer, p in zip(taken.layers, routing, strict=True):
        np.testing.assert_allclose(layer[-1], p[0].unflatten(0, (3, 64)).mean(1), atol=1e-6)
    assert not list(path.parent.glob("*.tmp"))

    model.logger.dump(model.num_timesteps)
    logs = EventAccumulator(str(tmp_path)).Reload()
    found = [logs.Scalars(f"routing_entropy/{name}")[-1].value for name in model.task_names]
    np.testing.assert_allclose(found, taken.entropy[-1], atol=1e-6)
    assert logs.Scalars("routing/entropy")[-1].value == pytest.approx(np.mean(found))


def test_going_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    model = make()
    model.learn(60, callback=RoutingSnapshotCallback(path, every=30))
    first = RoutingSnapshots.load(path)
    model.learn(60, callback=RoutingSnapshotCallback(path, every=30), reset_num_timesteps=False)
    both = RoutingSnapshots.load(path)
    assert both.steps.tolist() == [6, 36, 60, 90, 120]
    np.testing.assert_array_equal(both.layers[0][:3], first.layers[0])


def test_a_resumed_training_repeats_what_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    model = make()
    model.learn(60, callback=RoutingSnapshotCallback(path, every=30))
    model.num_timesteps = 40  # as it was saved
    model.learn(20, callback=RoutingSnapshotCallback(path, every=30), reset_num_timesteps=False)
    assert RoutingSnapshots.load(path).steps.tolist() == [6, 36, 61]


def test_the_file_of_another_training_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    make().learn(30, callback=RoutingSnapshotCallback(path, every=30))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"routing.npz holds the snapshots of another training: take another"):
        make().learn(30, callback=RoutingSnapshotCallback(path, every=30))
    other = MultiTaskSAC("SoftModPolicy", make_point_mass_env(2), buffer_size=100, policy_kwargs=SMALL)
    other.num_timesteps = 50
    with pytest.raises(ConfigurationError, match="earlier snapshots are of other tasks"):
        other.learn(30, callback=RoutingSnapshotCallback(path, every=1), reset_num_timesteps=False)
    assert path.read_bytes() == before


def test_plain_sac(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    model = SAC(SoftModPolicy, make_point_mass_env(2), policy_kwargs=dict(num_tasks=2, **SMALL), buffer_size=100)
    model.learn(20, callback=RoutingSnapshotCallback(path, every=10))
    taken = RoutingSnapshots.load(path)
    assert taken.steps.tolist() == [4, 14, 20]
    assert np.isfinite(taken.layers[0]).all()
    assert taken.task_names == ["corner-0", "corner-1"]


def test_a_task_without_states_is_missing() -> None:
    samples = RoutingSamples("actor", ["a", "b"], np.array([1, 1]), [np.full((2, 2, 2), 0.5), np.full((2, 2), 0.5)])
    taken = RoutingSnapshots.of(7, samples)
    assert np.isnan([*taken.entropy[:, 0], *taken.layers[0][0, 0].flat, *taken.layers[1][0, 0]]).all()
    np.testing.assert_array_equal(taken.layers[1][0, 1], [0.5, 0.5])


def test_models_that_cannot_be_watched_are_refused(tmp_path: Path) -> None:
    env = make_point_mass_env(2)
    with pytest.raises(ConfigurationError, match="MTMlpPolicy has no routing to show"):
        MultiTaskSAC("MTMlpPolicy", env).learn(10, callback=RoutingSnapshotCallback(tmp_path / "a.npz"))
    options = dict(features_extractor_class=SoftModularExtractor, features_extractor_kwargs=dict(num_tasks=2))
    with pytest.raises(ConfigurationError, match="from a replay buffer, and PPO has none"):
        PPO("MlpPolicy", env, policy_kwargs=options).learn(10, callback=RoutingSnapshotCallback(tmp_path / "a.npz"))
    with pytest.raises(ConfigurationError, match="every must be at least 1, not 0"):
        RoutingSnapshotCallback(tmp_path / "a.npz", every=0)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_of_the_file_runs(tmp_path: Path) -> None:
    names = np.array([Trap(tmp_path / "sprung")], object)
    np.savez(tmp_path / "routing.npz", steps=[1], task_names=names, entropy=[[0.0]], layer_0=[[0.0]])
    with pytest.raises(ConfigurationError, match="holds no snapshots of RoutingSnapshotCallback"):
        RoutingSnapshots.load(tmp_path / "routing.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half of a file", b"text", "npz"])
def test_files_that_hold_none(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "routing.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "npz":
        np.savez(path, something=np.zeros(3))
    message = "There is no file" if content is None else "holds no snapshots of RoutingSnapshotCallback"
    with pytest.raises(ConfigurationError, match=message) as error:
        RoutingSnapshots.load(path)
    assert str(path) in str(error.value)
