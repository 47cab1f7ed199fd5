"""Every method under one name: the systems of the paper's tables and figures, and those the field compares with today.

A method is a policy, its options and the algorithm's options; training files, tables and notebooks all read this
registry. Nothing here imports torch until a model is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sb3_softmod.checks import require_choice

if TYPE_CHECKING:
    from stable_baselines3.common.type_aliases import GymEnv

    from sb3_softmod.multitask_sac import MultiTaskSAC
    from sb3_softmod.networks import MultiTaskNetwork
    from sb3_softmod.policies import MultiTaskSACPolicy

#: Environment steps, over all tasks, that the paper trains for (section 5.2).
_STEPS = {"MT10": 15_000_000, "MT50": 50_000_000}
_BASELINE_STEPS = {"MT10": 20_000_000, "MT50": 100_000_000}


@dataclass(frozen=True)
class Method:
    """One way to learn many tasks.

    :param title: the name in the paper's tables
    :param source: where it is compared, or where it comes from
    :param policy: a name in :data:`sb3_softmod.policies.POLICIES`, or a policy class of your own
    :param policy_kwargs: options of the policy's network
    :param options: arguments of :class:`.MultiTaskSAC`
    :param env_steps: the paper's budget by task set, environment steps over all tasks
    :param relative_params: parameters relative to Ours (Deep) in the paper's Table 2
    """

    title: str
    source: str
    policy: str | type[MultiTaskSACPolicy]
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    env_steps: Mapping[str, int] = field(default_factory=lambda: dict(_STEPS))
    relative_params: float | None = None

    @property
    def network_class(self) -> type[MultiTaskNetwork]:
        """The network of its actor and critics."""
        from sb3_softmod.policies import POLICIES

        return (POLICIES[self.policy] if isinstance(self.policy, str) else self.policy).network_class

    def make(self, env: GymEnv | str, **overrides: Any) -> MultiTaskSAC:
        """A model that is ready to learn.

        :param env: a multi-task env, or the name of a Meta-World task or set
        :param overrides: further arguments of :class:`.MultiTaskSAC`; ``policy_kwargs`` are added to the method's own
        """
        from sb3_softmod.multitask_sac import MultiTaskSAC

        policy_kwargs = {**self.policy_kwargs, **(overrides.pop("policy_kwargs", None) or {})}
        return MultiTaskSAC(self.policy, env, **{**self.options, **overrides}, policy_kwargs=policy_kwargs)


def get_method(name: str) -> Method:
    """The method of a name.

    :raises ConfigurationError: for an unknown name, with the nearest ones
    """
    require_choice("method", name, METHODS)
    return METHODS[name]


def _multi_head(title: str, layers: int, units: int, relative_params: float, **options: Any) -> Method:
    return Method(
        title=title,
        source="Table 2, Figure 6a",
        policy="MultiHeadPolicy",
        policy_kwargs=dict(net_arch=[units] * layers),
        options=options,
        env_steps=_BASELINE_STEPS,
        relative_params=relative_params,
    )


#: The methods by name, as written on the command line.
METHODS: dict[str, Method] = {
    "softmod_shallow": Method(
        title="Ours (Shallow)",
        source="Table 1, Figure 5",
        policy="SoftModPolicy",
        policy_kwargs=dict(preset="shallow"),
        options=dict(loss_weighting="alpha"),
        relative_params=1.0,
    ),
    "softmod_deep": Method(
        title="Ours (Deep)",
        source="Tables 1 and 2, Figures 5 and 6a",
        policy="SoftModPolicy",
        policy_kwargs=dict(preset="deep"),
        options=dict(loss_weighting="alpha"),
        relative_params=1.0,
    ),
    "softmod_shallow_wo_balance": Method(
        title="Ours (Shallow, w/o Balance)",
        source="Figure 6b",
        policy="SoftModPolicy",
        policy_kwargs=dict(preset="shallow"),
        options=dict(loss_weighting="uniform"),
    ),
    "softmod_shallow_wo_obs_balance": Method(
        title="Ours (Shallow, w/o Obs & Balance)",
        source="Figure 6b",
        policy="SoftModPolicy",
        policy_kwargs=dict(preset="shallow", condition_on_obs=False),
        options=dict(loss_weighting="uniform"),
    ),
    "softmod_official": Method(
        title="Ours (Shallow), released code",
        source="the authors' released network, loss weights and gradient clipping",
        policy="SoftModPolicy",
        policy_kwargs=dict(preset="shallow", variant="official"),
        options=dict(loss_weighting="log_alpha", max_grad_norm=1.0),
    ),
    "single_task_sac": Method(
        title="Single-task SAC",
        source="section 5.6",
        policy="SingleTaskPolicy",
    ),
    "mt_sac": Method(
        title="MT-SAC",
        source="Table 1, Figure 5",
        policy="MTMlpPolicy",
        env_steps=_BASELINE_STEPS,
    ),
    "mt_mh_sac": Method(
        title="MT-MH-SAC",
        source="Tables 1 and 2, Figures 5 and 6",
        policy="MultiHeadPolicy",
        env_steps=_BASELINE_STEPS,
        relative_params=1.2,
    ),
    "mt_mh_sac_4": _multi_head("MT-MH-SAC-4", 4, 400, 1.6),
    "mt_mh_sac_5": _multi_head("MT-MH-SAC-5", 5, 400, 2.0),
    "mt_mh_sac_6": _multi_head("MT-MH-SAC-6", 6, 400, 2.4),
    "mt_mh_sac_4_wide": _multi_head("MT-MH-SAC-4-Wide", 4, 600, 3.3),
    "mt_mh_sac_5_wide": _multi_head("MT-MH-SAC-5-Wide", 5, 600, 4.2),
    "mt_mh_sac_balance": Method(
        title="MT-MH-SAC-Balance",
        source="Figure 6c",
        policy="MultiHeadPolicy",
        options=dict(loss_weighting="alpha"),
        env_steps=_BASELINE_STEPS,
    ),
    "mix_expert": Method(title="Mix-Expert", source="Table 1, Figure 5", policy="MixtureOfExpertsPolicy"),
    "hard_routing": Method(title="Hard Routing", source="Table 1, Figure 5", policy="HardRoutingPolicy"),
    "care": Method(title="CARE", source="Sodhani et al. 2021, without metadata", policy="CAREPolicy"),
    "paco": Method(title="PaCo", source="Sun et al. 2022", policy="PaCoPolicy"),
    "moore": Method(title="MOORE", source="Hendawy et al. 2024", policy="MOOREPolicy"),
    "film": Method(title="FiLM", source="Perez et al. 2018", policy="FiLMPolicy"),
    "mt_sac_pcgrad": Method(
        title="MT-SAC + PCGrad",
        source="Yu et al. 2020",
        policy="MTMlpPolicy",
        options=dict(gradient_surgery="pcgrad"),
        env_steps=_BASELINE_STEPS,
    ),
}
