"""A bar on long work that happens outside of a stage."""

from collections.abc import Iterable

from tqdm import tqdm

#: Work that ends sooner shows none.
_DELAY_S = 2.0


def progress_bar(
    what: str, items: Iterable[object] | None = None, total: int | None = None, unit: str = "row"
) -> tqdm:
    """Show a bar on the terminal, and nothing where stderr is none.

    Args:
        what: What is being done.
        items: What to go through; without it, call `update` in a `with`.
        total: How much there is, if known and `items` has no length.
        unit: Of `total` and `update`; bytes are "B".

    Example:
        for row in progress_bar("measuring", rows):
            measure(row)
    """
    return tqdm(
        items,
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        delay=_DELAY_S,
        leave=False,
        disable=None,
    )
