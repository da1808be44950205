"""What is said of a row that has not the column it needs, or more columns than its kind has."""

from posttrain.data.formats.errors import DataError
from posttrain.data.formats.keys import is_empty
from posttrain.data.formats.row import Row


def missing(name: str, other: str = "") -> str:
    """Say which column a row needs, or which of two, and how another of its columns is taken for it."""
    said = f'the row has neither "{name}" nor "{other}"' if other else f'the row has no "{name}"'
    return f"{said}; if they are called otherwise, write columns: {{{name}: …}} in the dataset's YAML"


def refuse_unused(row: Row, why: str, *names: str) -> None:
    """Refuse a row that has columns of another kind of row beside those that are read.

    Args:
        row: The columns that the format knows.
        why: What the row is.
        names: Columns that such a row has no use for.

    Raises:
        DataError: Naming the column.
    """
    for name in names:
        if not is_empty(row.get(name)):
            raise DataError(
                f"the row {why}, and its column {name!r} is not read; to leave it out, write"
                f" drop_columns: [{name}] in the dataset's YAML"
            )
