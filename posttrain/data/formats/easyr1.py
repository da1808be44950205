"""EasyR1's rows for RL: `{"problem": "<image>What is x?", "answer": "3", "images": [...]}`."""

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.missing import missing
from posttrain.data.formats.row import Row


def read_easyr1(row: Row) -> Row:
    """Read the problem as a user's message, the answer as the ground truth.

    Raises:
        DataError: If the problem is no text.
    """
    if not isinstance(row.get("problem"), str):
        raise DataError(f"{missing('problem')}; it is a text")
    return {
        "messages": [{"role": "user", "content": row["problem"]}],
        "ground_truth": row.get("answer"),
    }
