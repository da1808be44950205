"""What makes a list of rewards wrong: one rule, for configurations and for the reward package."""

import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.config.tasks import TaskConfig
from posttrain.reward_spec import RewardSpec, reward_list_fault
from rewards.manager import check_specs
from rewards.sdk import RewardError

GATED = {"name": "tool_calls", "only_if": {"math": 1.0}}


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"name": "math"}], None),
        ([{"name": "math", "weight": 0.5}, GATED], None),
        ([], "the list is empty"),
        ([{"name": "math"}, {"name": "math", "weight": 0.5}], "'math' is listed more than once"),
        ([{"name": "math", "weight": math.inf}], "the weight of 'math' is inf"),
        ([GATED], "'tool_calls' has only_if 'math', which is not another reward of the task"),
        ([{"name": "math", "only_if": {"math": 1.0}}], "'math' has only_if 'math', which is not another"),
        ([{"name": "math"}, GATED | {"only_if": {"math": math.nan}}], "only_if of 'tool_calls' asks for nan"),
    ],
)
def test_faults_of_a_list(rows: list[dict[str, Any]], fault: str | None) -> None:
    specs = [RewardSpec(**row) for row in rows]
    found = reward_list_fault(specs)
    if fault is None:
        assert found is None
        check_specs(specs)
        assert TaskConfig(data="letters", rewards=rows)  # type: ignore[arg-type]
        return
    assert found is not None
    assert found[0].startswith(fault)
    with pytest.raises(RewardError, match=f"rewards: {re.escape(fault)}.*; {re.escape(found[1])}"):
        check_specs(specs)
    with pytest.raises(ValidationError, match="rewards"):
        TaskConfig(data="letters", rewards=rows)  # type: ignore[arg-type]
