"""Which samples of a step share a row, so that nothing is padded and every rank carries the same load.

A step's samples are the same with and without packing; only their grouping differs. So the loss of a step
does not change, nothing has to be remembered in order to resume, and every dataset keeps its share.
"""

import heapq
import math
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int, ranks: int = 1) -> list[list[list[int]]]:
    """Deal samples into rows of at most `capacity` tokens, and the rows to ranks.

    Every rank gets the same number of rows, as few as can be, with loads as equal as can be: longest sample
    first, each to the lightest row (Graham's rule, at most 4/3 of the best largest load), with one more row
    for every rank where that does not fit. Best-fit decreasing needs a row less now and then, but leaves its
    last row nearly empty: a rank would wait for the others.

    Args:
        lengths: [S] tokens of each sample.
        capacity: Most tokens of a row.
        ranks: Data-parallel processes; S must be a multiple of it, so that no row stays empty.

    Returns:
        For each rank its rows, for each row the indices of its samples in increasing order. A pure function
        of its arguments: every rank can work out all of it.

    Raises:
        ValueError: If a sample is longer than a row, or the samples cannot be shared by the ranks.

    Example:
        pack([900, 100, 600, 400], capacity=1000)  # [[[0, 1], [2, 3]]]
    """
    if not lengths or len(lengths) % ranks:
        raise ValueError(
            f"{len(lengths)} samples cannot be shared by {ranks} ranks; use a multiple of {ranks}"
        )
    if max(lengths) > capacity:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit a row of {capacity}")
    rows_per_rank = math.ceil(sum(lengths) / capacity / ranks)
    while True:
        rows = _lightest_first(lengths, rows_per_rank * ranks, len(lengths))
        loads = [sum(lengths[index] for index in row) for row in rows]
        if max(loads) <= capacity:
            break
        rows_per_rank += 1
    shares = _lightest_first(loads, ranks, rows_per_rank)
    return [[sorted(rows[row]) for row in share] for share in shares]


def _lightest_first(weights: Sequence[int], bins: int, most: int) -> list[list[int]]:
    """Deal the heaviest first, each to the lightest bin with fewer than `most` of them; ties by number."""
    heap = [(0, number) for number in range(bins)]
    dealt: list[list[int]] = [[] for _ in range(bins)]
    for index in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        load, number = heapq.heappop(heap)
        dealt[number].append(index)
        if len(dealt[number]) < most:
            heapq.heappush(heap, (load + weights[index], number))
    return dealt
