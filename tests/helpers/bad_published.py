"""Bad inputs for what the published comparison needs: clipping by network, and a warm-up by the policy."""

from __future__ import annotations

import math
from typing import Any

from bad_inputs import BadInput, later
from bad_values import SMALL, bad_values, point_mass

from sb3_softmod import MultiTaskSAC


def every() -> list[BadInput]:
    """All of them."""

    def make(**kwargs: Any) -> Any:
        return MultiTaskSAC("MTMlpPolicy", point_mass(), **{**SMALL, **kwargs})

    cases = list(bad_values("algorithm", "MultiTaskSAC", make, {"policy_at_warmup": "flag"}))
    for what, norms in (
        ("three numbers", [1, 1, 1]),
        ("a zero in a pair", [1.0, 0]),
        ("a NaN in a pair", [math.nan, 1.0]),
        ("a word in a pair", (1.0, "one")),
        ("None in a pair", [None, 1.0]),
        ("a pair in a pair", [[1.0, 1.0], 1.0]),
    ):
        cases.append(
            BadInput("algorithm", f"max_grad_norm is {what}", later(make, max_grad_norm=norms), "max_grad_norm")
        )
    return cases
