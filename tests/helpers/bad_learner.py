"""Bad inputs of the learner: what no batch or device can be right for."""

from __future__ import annotations

from typing import Any

from bad_inputs import BadInput, later
from point_mass import make_point_mass_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecMonitor

from sb3_softmod import MultiTaskSAC, MultiTaskVecNormalize


def every() -> list[BadInput]:
    """All of them."""

    def normalised(**kwargs: Any) -> Any:
        return MultiTaskSAC("MTMlpPolicy", MultiTaskVecNormalize(make_point_mass_env(2)), device="cpu", **kwargs)

    def set_env(**kwargs: Any) -> None:
        model = MultiTaskSAC("MTMlpPolicy", make_point_mass_env(2), device="cpu", **kwargs)
        model.set_env(VecMonitor(MultiTaskVecNormalize(make_point_mass_env(2))))

    def plain(**kwargs: Any) -> Any:
        return MultiTaskSAC("MTMlpPolicy", make_point_mass_env(2), device="cpu", **kwargs)

    buffers: list[dict[str, Any]] = [
        dict(replay_buffer_class=ReplayBuffer),
        dict(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3)),
    ]
    cases = [
        BadInput("algorithm", "transitions on MPS", later(plain, buffer_device="mps"), "buffer_device"),
        BadInput("algorithm", "transitions on mps:0", later(plain, buffer_device="mps:0"), "float64"),
    ]
    for how, call in (("from the start", normalised), ("from set_env on", set_env)):
        for kwargs in buffers:
            text = f"normalised rewards {how}, in {kwargs['replay_buffer_class'].__name__}"
            cases.append(BadInput("algorithm", text, later(call, **kwargs), "MultiTaskReplayBuffer"))
    return cases
