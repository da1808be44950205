"""What can be known of judges, their conditions and their budget before a run starts."""

from typing import Any

import pytest

from tests.unit.preflight.test_knowable import only, rl

RULE_AUDIT = {"name": "json_valid", "only_if": {"math": 1}, "audit_share": 0.1}
JUDGED = ["math", {"name": "judge", "params": {"model": "j"}, "unless": {"math": 1}}]


def judged(judge: dict[str, Any], budget: dict[str, Any], others: list[Any] | None = None) -> dict[str, Any]:
    rewards = [*(JUDGED[:1] if others is None else others), {**JUDGED[1], **judge}]
    return {"stages": [rl(rewards=rewards)], "judge_budget": budget}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (judged({}, {"max_cost": 1.0, "prices": {"k": {"input": 1, "output": 2}}}), "needs a price of 'j'"),
        (judged({"unless": {}}, {"max_calls": 9, "on_exhausted": "skip"}, []), "no reward beside its judges"),
        (judged({"unless": {"math": 2}}, {"max_calls": 9}), "unless: math never gives 2, but 1 at most"),
        ({"stages": [rl()], "judge_budget": {"max_calls": 9}}, "no reward of the run asks a judge"),
        (judged({"audit_share": 0.1, "name": "judge_pairwise"}, {"max_calls": 9}), "compares episodes"),
        ({"stages": [rl(rewards=["math", RULE_AUDIT])]}, "computed for every episode anyway"),
    ],
)
def test_judges_and_their_budget(look, run, reason):
    assert reason in only(look(**run))


def test_a_judge_that_stands_in_is_no_bonus(look):
    found = look(**judged({"audit_share": 0.1}, {"max_calls": 9, "on_exhausted": "skip"}))
    assert found.problems == []
    assert not any("only_if" in note for note in found.notes)
