"""Is the table that the model wrote the reference table?"""

from posttrain.types import RewardInput, Score
from rewards.reading.tables import Table, TableTooLarge, parse_table, teds
from rewards.reading.text import transcript
from rewards.sdk import reward


@reward("teds")
def table_similarity(x: RewardInput, structure_only: bool = False) -> Score | None:
    """Score how alike the answer's table and the reference are, by tree edit distance (TEDS).

    Formula: `rewards.reading.tables.teds` of the last table in the answer (after the thinking) and the
    reference;
    0 without a table. The two may be in different formats: HTML, LaTeX or Markdown. A table of more than
    400 rows and cells, or an answer of more than 100,000 characters, scores 0.

    Range: [0, 1]. Source: Zhong et al. 2020, PubTabNet (arXiv 1911.10683).

    Args:
        x: `ground_truth` is a text with the reference table, of which the last counts too; None means
            that this does not apply.
        structure_only: Whether the cells' texts are left out, so that rows, columns and spans count.

    Raises:
        ValueError: If the ground truth has no table or one that is too large, a fault of the dataset.
    """
    if x.ground_truth is None:
        return None
    reference = _reference(x.ground_truth)
    try:
        answer = parse_table(transcript(x.answer))
    except TableTooLarge as error:
        return Score(0.0, note=f"the answer: {error}")
    if answer is None:
        return Score(0.0, note="no table in the answer")
    note = f"{_size(answer)} against {_size(reference)}"
    return Score(teds(reference, answer, structure_only), note=note)


def _reference(ground_truth: object) -> Table:
    if not isinstance(ground_truth, str):
        raise ValueError(f"ground_truth {ground_truth!r:.80} is not the text of a table; correct the dataset")
    table = parse_table(transcript(ground_truth))
    if table is None:
        raise ValueError(f"ground_truth {ground_truth!r:.80} holds no table with a cell; correct the dataset")
    return table


def _size(table: Table) -> str:
    return f"{len(table)} rows, {sum(map(len, table))} cells"
