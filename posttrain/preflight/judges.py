"""The judges of a run: does its budget fit them, and what is left of a task without them?"""

from collections.abc import Sequence

from posttrain.config import RewardRef
from posttrain.config.document import Key, key_text
from posttrain.joints import Reward
from posttrain.plugins import PluginError
from posttrain.preflight.findings import Examination

BUDGET: Key = ("judge_budget",)


def examine_judges(look: Examination) -> None:
    """Look at the run's budget of judges, if it has one, and at the rewards that are counted against it."""
    budget = look.config.judge_budget
    if budget is None:
        return
    found = 0
    for use in look.config.tasks():
        judges = {ref.name for ref in use.task.rewards if _budgeted(look, ref.name)}
        found += len(judges)
        for index, ref in enumerate(use.task.rewards):
            model = ref.params.get("model")
            if ref.name in judges and budget.max_cost is not None and model not in budget.prices:
                reason = f"judge_budget.max_cost needs a price of {model!r}"
                look.problem((*use.key, "rewards", index), reason, "add it to judge_budget.prices")
        if judges and budget.on_exhausted == "skip" and not _counts_without(use.task.rewards, judges):
            look.problem(
                (*BUDGET, "on_exhausted"),
                f"{key_text(use.key)} has no reward beside its judges, so without them nothing is scored",
                "take stop, or give the task a reward that is computed here",
            )
    curated = any(getattr(stage, "curation", None) for stage in look.config.stages)
    if not found and not curated:  # a recipe's own steps may ask judges
        look.problem(BUDGET, "no reward of the run asks a judge", "remove it, or add a judge")


def _budgeted(look: Examination, name: str) -> bool:
    """Tell whether a reward is counted; one that does not load is another's problem."""
    try:
        loaded: Reward = look.plugins.load_reward(name, look.base_dir)
    except PluginError:
        return False
    return loaded.budgeted


def _counts_without(rewards: Sequence[RewardRef], judges: set[str]) -> bool:
    """Tell whether some reward counts where the judges are left out."""
    return any(ref.weight and ref.name not in judges and not judges & ref.only_if.keys() for ref in rewards)
