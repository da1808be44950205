"""What the judges of a run may spend, and what they have spent: two small files in the run's directory."""

import json
from pathlib import Path

from posttrain.config.judge_budget import JudgeBudgetConfig
from posttrain.files.durable import write_atomic
from posttrain.files.tally import Tally, TallyError
from posttrain.run.metric_names import JUDGE

#: What judges may spend, as those who ask them read it.
BUDGET_FILE = "judge-budget.json"
#: What they have spent, written by those who ask them, whichever of them and however often resumed.
LEDGER_FILE = "judge-ledger.json"
#: Sums of the ledger that are told, in this order.
TOLD = ("calls", "cached", "input_tokens", "output_tokens", "cost")


def write_budget(run: Path, budget: JudgeBudgetConfig | None) -> Path:
    """Write what the judges of a run may spend; return the file's path.

    Args:
        run: The run's directory.
        budget: The limits; without any, what is spent is only counted.
    """
    limits = {} if budget is None else budget.model_dump(mode="json")
    write_atomic(run / BUDGET_FILE, json.dumps({**limits, "ledger": LEDGER_FILE}, indent=2) + "\n")
    return run / BUDGET_FILE


def read_spending(run: Path) -> dict[str, float]:
    """Return what the judges of a run have spent, by the names of `TOLD`; nothing where there is no ledger.

    A ledger that cannot be read counts as none here; whoever is to spend stops at it.
    """
    try:
        sums = Tally(run / LEDGER_FILE).read()
    except TallyError:
        return {}
    return {name: sums[name] for name in TOLD if name in sums}


def spending_metrics(run: Path) -> dict[str, float]:
    """Return what the judges of a run have spent so far, as metrics."""
    return {JUDGE + name: value for name, value in read_spending(run).items()}
