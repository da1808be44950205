"""What each optimiser step of supervised fine-tuning learns from: draws, rendered and put into batches."""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.data.packing import pack
from posttrain.models.supervised_head import IGNORED
from posttrain.rendering.collation import RopeIndex, collate, collate_packed, pad_rows
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.training.core.distributed import rank, sum_over_ranks, world_size
from posttrain.types import Sample

#: Rendered tokens kept by a worker, about 50 bytes each; pixels have their own bounded cache.
TOKENS_KEPT = 2_000_000
#: Replacements of a sample that is too long that are looked at, before the dataset is blamed.
REPLACEMENTS = 100


class RenderedDraws:
    """The sample of each draw, as the model sees it.

    A sample with more than `max_length` tokens is left out, and replaced by one of the same dataset: that of
    the first draw that fits among those one, two … times the stage's length beyond it. So every step has all
    its samples and every dataset its share, and a draw stays a pure function of its number.

    Args:
        mixture: Which sample each draw is.
        renderer: Of the checkpoint being trained.
        max_length: Most tokens of a sample.
        draws: How many the stage makes in total.
    """

    def __init__(self, mixture: Mixture, renderer: Renderer, max_length: int, draws: int) -> None:
        self._mixture = mixture
        self._renderer = renderer
        self._max_length = max_length
        self._draws = draws
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._tokens_kept = 0

    def sample(self, draw: int) -> tuple[Any, int]:
        """The sample of a draw, and how many were left out before it.

        Raises:
            DataError: If REPLACEMENTS samples in a row are too long.
            RenderError: If a sample cannot be shown to the model.
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
            row = self._replacement(dataset, draw, left_out)
        return rendered, left_out

    def fits(self, draw: int) -> bool:
        """Whether the sample of a draw is not left out."""
        return len(self._render(*self._mixture.index(draw)).token_ids) <= self._max_length

    def max_length(self, draw: int) -> int:
        """Most tokens of a packed row with the sample of a draw."""
        return self._mixture.max_length(draw) or self._max_length

    def _replacement(self, dataset: str, draw: int, turn: int) -> int:
        """Row of the `turn`-th replacement; places in the mixture's period recur, so there is one."""
        beyond = (self._mixture.index(draw + again * self._draws) for again in itertools.count(1))
        rows = (row for name, row in beyond if name == dataset)
        return next(itertools.islice(rows, turn - 1, None))

    def _render(self, dataset: str, row: int) -> Any:
        key = (dataset, row)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        rendered = self._show(dataset, self._mixture.datasets[dataset][row])
        self._kept[key] = rendered
        self._tokens_kept += len(rendered.token_ids)
        while self._tokens_kept > TOKENS_KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._tokens_kept -= len(dropped.token_ids)
        return rendered

    def _show(self, dataset: str, sample: Sample) -> Any:
        """A sample as the model sees it; whatever it is, its `token_ids` are what `max_length` bounds."""
        return self._renderer.render(sample.messages, tools=tool_specs(sample))

    def targets(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """More arguments of the model, of the items' supervised tokens one after another; here none."""
        return {}


class PaddedBatches:
    """Draw numbers to one padded micro-batch.

    Args:
        draws: The samples.
        renderer: Of the checkpoint being trained.
    """

    def __init__(self, draws: RenderedDraws, renderer: Renderer) -> None:
        self._draws = draws
        self._renderer = renderer

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Batch the samples of `rows`, each `{"draw": i}`; returns what `_share` does."""
        found = [self._draws.sample(row["draw"]) for row in rows]
        items = [item for item, _ in found]
        return _share([items], self._batch, left_out=sum(number for _, number in found))

    def _batch(self, items: Sequence[Rendered]) -> dict[str, Tensor]:
        batch = collate(items, self._renderer)
        supervised = pad_rows([item.supervised for item in items], False, bool)
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch | self._draws.targets(items)


class PackedBatches:
    """Numbers of steps to this rank's packed rows, each a micro-batch.

    Every rank renders its part of the step's samples and tells the others their lengths; then each can work
    out by itself which samples are its own (see `pack`).

    Args:
        draws: The samples.
        renderer: Of the checkpoint being trained.
        rope_index: `get_rope_index` of the model's backbone; None of a text model.
        samples: Of each step, over all ranks.
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

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Pack the samples of the step that the only row, `{"draw": i}`, stands for.

        Returns:
            What `_share` does; `left_out` is of the samples that this rank measured.
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
        return _share(mine, self._row, left_out)

    def _row(self, items: Sequence[Rendered]) -> dict[str, Tensor]:
        batch = collate_packed(items, self._renderer, self._rope_index)
        # A sample's first token follows another sample's last: it is not to be foretold.
        supervised = torch.tensor([flag for item in items for flag in (False, *item.supervised[1:])])
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch | self._draws.targets(items)


def _share(
    micro_batches: Sequence[Sequence[Rendered]],
    make: Callable[[Sequence[Rendered]], dict[str, Tensor]],
    left_out: int,
) -> dict[str, Any]:
    """What a rank works on between two calls of the collator.

    Returns:
        `micro_batches`: what makes each, the model's arguments and `labels` [B, L]; so the pixels of one are
        in memory at a time. `supervised`: [S] supervised tokens of each sample. `left_out`: how many samples
        were too long, a tensor.
    """
    supervised = [sum(item.supervised[1:]) for items in micro_batches for item in items]
    return {
        "micro_batches": [functools.partial(make, items) for items in micro_batches],
        "supervised": torch.tensor(supervised),
        "left_out": torch.tensor(left_out),
    }


def sequence_ids(batch: dict[str, Tensor]) -> Tensor:
    """The sample within the micro-batch that each token belongs to, [B, L]."""
    ids = batch["input_ids"]
    if "position_ids" in batch:
        return (batch["position_ids"].view(-1, *ids.shape)[0] == 0).cumsum(1) - 1
    return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
