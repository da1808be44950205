"""What a learner runs forward and backward at once: packed rows, as equal in tokens as can be on every rank.

The losses are sums with normalisers over all ranks, so how a mini-batch is dealt to ranks and rows changes
nothing but the speed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from posttrain.data.packing import pack
from posttrain.types import Trajectory

#: Pieces that a rank's part of a mini-batch is dealt in at the least; a group whose images are shared is cut
#: up to this point, so that loads differ by a quarter of a share at the most.
PIECES_PER_RANK = 4


@dataclass
class Row:
    """Trajectories that are run forward and backward together, one after another in a packed row.

    Attributes:
        trajectories: The trajectories.
        counts: Whether they are learned from; if not, they are run for the other ranks' sake.
    """

    trajectories: list[Trajectory]
    counts: bool = True


@dataclass(frozen=True)
class Share:
    """This rank's part of a mini-batch.

    Attributes:
        rows: The rows, as many as every other rank has, since they exchange weights and gradients with each.
            What a rank has too few of is made up by rows that do not count.
        sequences: Number of trajectories of the mini-batch over all ranks, those without signal included.
        tokens: Number of their sampled tokens, without those of masked ones. Either may be the normaliser of
            a loss.
    """

    rows: list[Row]
    sequences: int
    tokens: int


def mini_batches(trajectories: Sequence[Trajectory], parts: int) -> list[list[Trajectory]]:
    """Split a rollout batch by groups, whose episodes stay together.

    Args:
        trajectories: The batch.
        parts: Number of mini-batches; no more are made than there are groups.
    """
    groups = sorted({trajectory.group for trajectory in trajectories})
    count = min(parts, len(groups))
    place = {group: number * count // len(groups) for number, group in enumerate(groups)}
    return [[each for each in trajectories if place[each.group] == part] for part in range(count)]


class Counting(Protocol):
    """What is learned from, and what is left out (see `Objective`)."""

    def teaches(self, episode: Trajectory) -> bool:
        """Tell whether something is learned from an episode."""
        ...

    def masked(self, episode: Trajectory) -> bool:
        """Tell whether nothing is ever learned from an episode, whatever its group is."""
        ...


@dataclass(frozen=True)
class _Every:
    """Counts every episode."""

    def teaches(self, episode: Trajectory) -> bool:
        """Tell that something is to be computed of it."""
        return True

    def masked(self, episode: Trajectory) -> bool:
        """Tell that it is not left out."""
        return False


ALL = _Every()


def with_signal(trajectories: Sequence[Trajectory], counting: Counting) -> list[Trajectory]:
    """Return the trajectories of groups of which one teaches something, group by group.

    The others have a gradient of zero: they count in the normaliser, and nothing of them is computed. Nor is
    anything of masked ones.

    Args:
        trajectories: A mini-batch.
        counting: Says which are which.
    """
    seen = [each for each in trajectories if not counting.masked(each)]
    telling = {each.group for each in seen if counting.teaches(each)}
    return sorted(
        (each for each in seen if each.group in telling), key=lambda each: (each.group, each.episode)
    )


def share_of(
    trajectories: Sequence[Trajectory],
    capacity: int,
    filler: Trajectory,
    index: int,
    of: int,
    counting: Counting,
) -> Share:
    """Deal the trajectories of a mini-batch that teach something into packed rows, and the rows to ranks.

    Episodes of a group that show images stay in one row where they fit, since an image that they have in
    common then goes through the vision tower once.

    Args:
        trajectories: A mini-batch; at least one.
        capacity: Most tokens of a row; a longer trajectory has a row of its own.
        filler: What a rank runs where it has a row less than others.
        index: The rank.
        of: Number of ranks.
        counting: Says what teaches something, and what is masked.
    """
    learned = with_signal(trajectories, counting)
    tokens = sum(sum(each.sampled) for each in trajectories if not counting.masked(each))
    if not learned:
        return Share([], len(trajectories), tokens)
    total = sum(len(each.token_ids) for each in learned)
    capacity = max(capacity, *(len(each.token_ids) for each in learned))
    largest = capacity if of == 1 else min(capacity, math.ceil(total / of / PIECES_PER_RANK))
    pieces = [piece for _, group in groupby(learned, _together) for piece in _pieces(group, largest)]
    lengths = [sum(len(each.token_ids) for each in piece) for piece in pieces]
    # Empty pieces, because every rank needs its rows.
    dealt = pack(lengths + [0] * (-len(lengths) % of), capacity, of)[index]
    rows = [[each for place in row if place < len(pieces) for each in pieces[place]] for row in dealt]
    return Share(
        [Row(row) if row else Row([filler], counts=False) for row in rows], len(trajectories), tokens
    )


def _together(trajectory: Trajectory) -> tuple[int, int]:
    """Return a key of what shares what it shows: a group, or a single trajectory that shows nothing."""
    return trajectory.group, -1 if trajectory.media else trajectory.episode


def _pieces(group: Iterable[Trajectory], largest: int) -> list[list[Trajectory]]:
    """Cut a group into pieces of at most so many tokens, or of one trajectory."""
    pieces: list[list[Trajectory]] = []
    room = 0
    for trajectory in group:
        tokens = len(trajectory.token_ids)
        if not pieces or tokens > room:
            pieces.append([])
            room = largest
        pieces[-1].append(trajectory)
        room -= tokens
    return pieces
