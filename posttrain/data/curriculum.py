"""The curriculum by length: first short samples alone, then long ones alternating with them.

Qwen3-VL was fine-tuned so: one epoch at 32K tokens, then 256K, where long samples alternate with those of 32K
(Qwen3-VL Technical Report, 2025).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture, PeriodicSchedule


@dataclass(frozen=True)
class LengthPhases:
    """The lengths of each phase, and when the second one begins.

    Attributes:
        short_length: Most tokens of a short sample.
        max_length: Most tokens of any sample; longer ones never come.
        long_share: Share of long samples in the second phase.
        second_from: The first draw of the second phase.
    """

    short_length: int
    max_length: int
    long_share: float
    second_from: int


class CurriculumMixture(Mixture):
    """A mixture in two phases; like any, a pure function of the draw's number.

    Until `second_from` every draw is a short sample. From there on, after any number of draws, the long ones
    are less than one off their share. Short and long samples are each a mixture of its own: among the
    datasets that have such rows the shares hold in the same way, and each dataset's short and long rows come
    in epochs of their own.
    """

    def __init__(
        self,
        mixture: Mixture,
        weights: Mapping[str, float],
        seed: int,
        lengths: Mapping[str, Sequence[int]],
        phases: LengthPhases,
        by_tokens: bool = False,
    ):
        """Sort the rows by their lengths; 4 bytes each are held.

        Args:
            mixture: All the rows.
            weights: By dataset.
            seed: Of the orders in which rows come.
            lengths: By dataset, the tokens of each row.
            phases: The phases.
            by_tokens: Whether the shares of the datasets are of tokens.

        Raises:
            DataError: If there are no short, or no long samples, or every row of a dataset is too long.
        """
        self.datasets = mixture.datasets
        self._phases = phases
        share = phases.long_share
        kinds = {"short": 1 - share, "long": share} if share < 1 else {"long": 1.0}
        self._kinds = PeriodicSchedule(kinds)
        bounds = {"short": (0, phases.short_length), "long": (phases.short_length, phases.max_length)}
        rows = {kind: _rows_within(lengths, *bound) for kind, bound in bounds.items()}
        if empty := sorted(self.datasets.keys() - rows["short"].keys() - rows["long"].keys()):
            raise DataError(
                f"dataset {empty[0]}: every sample has more tokens than data.max_length ="
                f" {phases.max_length}; raise it, or leave the dataset out"
            )
        self._parts: dict[str, Mixture] = {}
        for kind, found in rows.items():
            if not found:
                raise DataError(
                    f"{'no' if kind == 'long' else 'every'} sample has more tokens than"
                    f" data.curriculum.short_length = {phases.short_length}; change it, or leave the"
                    " curriculum out"
                )
            datasets = {name: self.datasets[name] for name in found}
            shares = {name: weights[name] for name in found}
            self._parts[kind] = Mixture(datasets, shares, seed, lengths if by_tokens else None, found)

    def index(self, draw: int) -> tuple[str, int]:
        """Return the dataset and the row of a draw, counted from 0."""
        begun = self._phases.second_from
        if draw < begun:
            return self._parts["short"].index(draw)
        kind, nth = self._kinds[draw - begun]
        return self._parts[kind].index(nth + (begun if kind == "short" else 0))

    def max_length(self, draw: int) -> int:
        """Return the most tokens that a sample of the draw's phase may have."""
        return self._phases.short_length if draw < self._phases.second_from else self._phases.max_length


def _rows_within(lengths: Mapping[str, Sequence[int]], above: int, most: int) -> dict[str, Sequence[int]]:
    """Return the rows with more than `above` and at most `most` tokens, by dataset; without empty ones."""
    found = {
        name: array("I", (row for row, length in enumerate(each) if above < length <= most))
        for name, each in lengths.items()
    }
    return {name: rows for name, rows in found.items() if rows}
