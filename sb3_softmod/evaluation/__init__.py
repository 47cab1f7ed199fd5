"""How well a model does on each task, once or while it learns; videos. May import the algorithm and what is below."""

from sb3_softmod.evaluation.callback import MultiTaskEvalCallback
from sb3_softmod.evaluation.evaluate import MetaWorldAgent, evaluate_tasks, make_evaluation_env, rollout
from sb3_softmod.evaluation.mixture_result import MixtureSearch, TriedMixture
from sb3_softmod.evaluation.mixture_search import search_mixture
from sb3_softmod.evaluation.result import TaskEvaluation, wilson_interval

__all__ = [
    "MetaWorldAgent",
    "MixtureSearch",
    "MultiTaskEvalCallback",
    "TaskEvaluation",
    "TriedMixture",
    "evaluate_tasks",
    "make_evaluation_env",
    "rollout",
    "search_mixture",
    "wilson_interval",
]
