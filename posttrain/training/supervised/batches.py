"""Batches of supervised fine-tuning: draws of a mixture, rendered, and padded or packed."""

import functools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor

from posttrain.data.formats import DataError
from posttrain.data.mixing import REPLACEMENTS, Mixture
from posttrain.data.packing import pack
from posttrain.media.images import ImageError
from posttrain.media.videos import VideoError
from posttrain.models.supervised_head import IGNORED
from posttrain.rendering.collation import RopeIndex, collate, collate_packed, pad_rows, prepare
from posttrain.rendering.rendered import Rendered, RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.training.core.distributed import rank, sum_over_ranks, world_size
from posttrain.types import Sample

#: Rendered tokens kept by a worker, about 50 bytes each; pixels have their own bounded cache.
TOKENS_KEPT = 2_000_000
#: The number of a draw, or of a packed step, as the trainer hands it to the collator: `{"draw": i}`.
Row = dict[str, int]
#: A micro-batch: the model's arguments by name, `labels` [B, L] and what `RenderedDraws.targets` returns.
Batch = dict[str, Tensor]


class RankBatch(TypedDict):
    """What a rank works on between two calls of the collator.

    Attributes:
        micro_batches: Functions that make the micro-batches, so that the pixels of only one are in memory.
        supervised: [S] supervised tokens of each sample.
        left_out: Number of samples that were too long, a scalar.
    """

    micro_batches: list[Callable[[], Batch]]
    supervised: Tensor
    left_out: Tensor


class HasTokens(Protocol):
    """A rendered sample, or a rendered pair."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens whose number `max_length` bounds."""
        ...


T = TypeVar("T", bound=HasTokens)


class Draws(ABC, Generic[T]):
    """The sample of each draw, rendered.

    A sample with more than `max_length` tokens is left out, and replaced by the next of the same dataset that
    fits (see `Mixture.replacement`). So every step has all its samples and every dataset its share.

    Args:
        mixture: Tells which sample each draw is.
        renderer: The renderer of the checkpoint being trained. Samples are rendered by the headers of their
            images; the pixels are loaded where a micro-batch is made.
        max_length: Most tokens of a sample.
        draws: Number of draws that the stage makes in total.
    """

    def __init__(self, mixture: Mixture, renderer: Renderer, max_length: int, draws: int) -> None:
        self._mixture = mixture
        self._renderer = renderer.counting()
        self._max_length = max_length
        self._draws = draws
        self._kept: OrderedDict[tuple[str, int], T] = OrderedDict()
        self._tokens_kept = 0

    def sample(self, draw: int) -> tuple[T, int]:
        """Render the sample of a draw; return it, and how many were left out before it.

        Raises:
            DataError: If REPLACEMENTS samples in a row are too long, or one cannot be shown to the model.
        """
        dataset, row = self._mixture.index(draw)
        left_out = 0
        while len((rendered := self._render(dataset, row)).token_ids) > self._max_length:
            left_out += 1
            if left_out > REPLACEMENTS:
                raise DataError(
                    f"dataset {dataset}: {left_out} samples one after another have more tokens than"
                    f" data.max_length = {self._max_length}; raise it, or filter the dataset"
                )
            row = self._mixture.replacement(draw, left_out, self._draws)
        return rendered, left_out

    @property
    def total(self) -> int:
        """Number of draws that the stage makes in total."""
        return self._draws

    def fits(self, draw: int) -> bool:
        """Tell whether the sample of a draw is short enough."""
        return len(self._render(*self._mixture.index(draw)).token_ids) <= self._max_length

    def max_length(self, draw: int) -> int:
        """Return the most tokens of a packed row that has the sample of a draw."""
        return self._mixture.max_length(draw) or self._max_length

    def _render(self, dataset: str, row: int) -> T:
        """Render a row, or take it from those that were rendered last."""
        key = (dataset, row)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        sample = self._mixture.datasets[dataset][row]
        try:
            rendered = self._show(dataset, sample)
        except (RenderError, ImageError, VideoError) as error:
            raise DataError(f"dataset {dataset}, sample {sample.id}: {error}") from error
        self._kept[key] = rendered
        self._tokens_kept += len(rendered.token_ids)
        while self._tokens_kept > TOKENS_KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._tokens_kept -= len(dropped.token_ids)
        return rendered

    @abstractmethod
    def _show(self, dataset: str, sample: Sample) -> T:
        """Render a sample."""


class RenderedDraws(Draws[Rendered]):
    """The sample of each draw as one dialogue; see `Draws`."""

    def _show(self, dataset: str, sample: Sample) -> Rendered:
        """Render a sample."""
        return self._renderer.render(sample.messages, tools=tool_specs(sample))

    def targets(self, items: Sequence[Rendered]) -> Batch:
        """Return more tensors about the supervised tokens of all items, one after another; here none."""
        return {}


class PaddedBatches:
    """A collator that makes one padded micro-batch of the samples of several draws.

    Args:
        draws: The samples.
        renderer: The renderer of the checkpoint being trained.
    """

    def __init__(self, draws: RenderedDraws, renderer: Renderer) -> None:
        self._draws = draws
        self._renderer = renderer

    def __call__(self, rows: Sequence[Row]) -> RankBatch:
        """Batch the samples of the draws."""
        found = [self._draws.sample(row["draw"]) for row in rows]
        items = [item for item, _ in found]
        prepare(items, self._renderer)
        return _rank_batch([items], self.make, left_out=sum(number for _, number in found))

    def make(self, items: Sequence[Rendered]) -> Batch:
        """Make the micro-batch of some samples."""
        batch = collate(items, self._renderer)
        supervised = pad_rows([item.supervised for item in items], False, bool)
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch | self._draws.targets(items)


class PackedBatches:
    """A collator that makes this rank's packed rows of a step, each a micro-batch.

    Every rank renders its part of the step's samples and tells the others their lengths; then each can work
    out by itself which samples are its own (see `pack`).

    Args:
        draws: The samples.
        renderer: The renderer of the checkpoint being trained.
        rope_index: `get_rope_index` of the model's backbone; None for a text model.
        samples: Number of samples of each step, over all ranks.
    """

    def __init__(
        self,
        draws: RenderedDraws,
        renderer: Renderer,
        rope_index: RopeIndex | None,
        samples: int,
    ) -> None:
        self._draws = draws
        self._renderer = renderer
        self._rope_index = rope_index
        self._samples = samples

    def __call__(self, rows: Sequence[Row]) -> RankBatch:
        """Pack the samples of a step; `left_out` counts among the samples that this rank rendered first.

        Args:
            rows: One row, with the number of the step times the number of ranks, plus the rank.
        """
        (row,) = rows
        first = row["draw"] // world_size() * self._samples
        lengths = torch.zeros(self._samples, dtype=torch.long)
        left_out = 0
        for place in range(rank(), self._samples, world_size()):
            item, number = self._draws.sample(first + place)
            lengths[place] = len(item.token_ids)
            left_out += number
        lengths = sum_over_ranks(lengths)
        capacity = max(self._draws.max_length(first), int(lengths.max()))
        shares = pack(lengths.tolist(), capacity, world_size())
        mine = [[self._draws.sample(first + place)[0] for place in places] for places in shares[rank()]]
        # The loader is a step ahead of the trainer: these are made while the model works on the step before.
        prepare([item for items in mine for item in items], self._renderer)
        return _rank_batch(mine, self.make, left_out)

    def make(self, items: Sequence[Rendered]) -> Batch:
        """Make the packed row of some samples."""
        batch = collate_packed(items, self._renderer, self._rope_index)
        # A sample's first token follows the last of another sample, from which it cannot be predicted.
        supervised = torch.tensor([flag for item in items for flag in (False, *item.supervised[1:])])
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch | self._draws.targets(items)


def _rank_batch(
    micro_batches: Sequence[Sequence[Rendered]],
    make: Callable[[Sequence[Rendered]], Batch],
    left_out: int,
) -> RankBatch:
    """Make what the trainer works on, of the samples of each micro-batch."""
    supervised = [sum(item.supervised[1:]) for items in micro_batches for item in items]
    return {
        "micro_batches": [functools.partial(make, items) for items in micro_batches],
        "supervised": torch.tensor(supervised),
        "left_out": torch.tensor(left_out),
    }


def model_inputs(batch: Batch) -> Batch:
    """Return a micro-batch without its `labels`: what the model's forward pass takes."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def sequence_ids(batch: Batch) -> Tensor:
    """Return the sample within the micro-batch that each token belongs to, [B, L]."""
    ids = batch["input_ids"]
    if "position_ids" in batch:
        return (batch["position_ids"].view(-1, *ids.shape)[0] == 0).cumsum(1) - 1
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
