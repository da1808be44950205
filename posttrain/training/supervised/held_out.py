"""Held-out rows of a stage: which are measured, and how ranks share them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypedDict, TypeVar

import torch
from datasets import Dataset
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.config.data import Use
from posttrain.config.held_out import HeldOutKeys
from posttrain.data.formats import DataError
from posttrain.data.mixing import Mixture
from posttrain.data.packing import pack
from posttrain.data.sources import open_mixture
from posttrain.objectives.sft import Normalization, sft_normalizer
from posttrain.rendering.collation import prepare
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.rendering.row_checks import RenderCheck
from posttrain.training.core.distributed import rank, world_size
from posttrain.training.supervised.batches import Batch, Draws, PackedBatches, PaddedBatches, RenderedDraws

D = TypeVar("D", bound=Draws)
#: The place of a dialogue that is shown only so that all ranks have as many.
_AGAIN = -1


class EvaluationArguments(TypedDict):
    """The arguments by which transformers' trainers measure."""

    eval_strategy: str
    eval_steps: int | None
    eval_on_start: bool


def evaluation_arguments(stage: HeldOutKeys, steps: int, resumed: bool) -> EvaluationArguments:
    """Translate when a stage measures; one that is not `resumed` does so before the first step as well."""
    held_out = stage.eval_dataset is not None
    return {
        "eval_strategy": "steps" if held_out else "no",
        "eval_steps": (stage.eval_steps or steps) if held_out else None,
        "eval_on_start": held_out and not resumed,
    }


def held_out_draws(
    name: str,
    config: RunConfig,
    use: Use,
    renderer: Renderer,
    max_length: int,
    make: Callable[[Mixture, int], D],
) -> tuple[D, list[int], int]:
    """Open a held-out dataset, each row of which is one draw; those that are too long are left out.

    Args:
        name: Of the dataset.
        config: The run's settings.
        use: What the rows are used for.
        renderer: The renderer of the checkpoint being trained.
        max_length: Most tokens of a row, for the message.
        make: Makes what renders the draws, of the dataset and the number of its rows.

    Returns:
        What renders them, the draws that fit, and the number of the others.

    Raises:
        DataError: If all are too long.
    """
    mixture = open_mixture(
        {name: 1.0}, config.seed, config.base_dir, use=use, check=RenderCheck(renderer, use)
    )
    rendered = make(mixture, len(mixture))
    draws = [draw for draw in range(len(mixture)) if rendered.fits(draw)]
    if not draws:
        raise DataError(
            f"dataset {name}: every row has more tokens than data.max_length = {max_length}; raise it"
        )
    return rendered, draws, len(mixture) - len(draws)


class HeldOutDialogues:
    """The held-out dialogues of an sft stage as micro-batches, the same number of them on every rank.

    Where the rows cannot be shared evenly, some are shown once more with nothing to be learned.

    Args:
        draws: Renders them.
        chosen: The draws that are measured.
        batches: Makes micro-batches of such draws, padded or packed.
        renderer: The renderer of the checkpoint being trained.
        limits: Samples of a padded micro-batch, and tokens of a packed row.
        left_out: Number of dialogues that were too long.

    Attributes:
        dataset: The numbers of the draws, which transformers asks for.
        left_out: As given.
    """

    def __init__(
        self,
        draws: RenderedDraws,
        chosen: list[int],
        batches: PaddedBatches | PackedBatches,
        renderer: Renderer,
        limits: tuple[int, int],
        left_out: int,
    ) -> None:
        size, max_length = limits
        self._draws, self._chosen, self._make, self._renderer = draws, chosen, batches.make, renderer
        self.dataset = Dataset.from_dict({"draw": chosen})
        self.left_out = left_out
        ranks = world_size()
        places = [*range(len(chosen)), *([_AGAIN] * (-len(chosen) % ranks))]
        if isinstance(batches, PackedBatches):
            lengths = [len(self._item(place).token_ids) for place in places]
            self._rows = [[places[at] for at in row] for row in pack(lengths, max_length, ranks)[rank()]]
        else:
            own = places[rank() :: ranks]
            self._rows = [own[start : start + size] for start in range(0, len(own), size)]

    def normalizer(self, normalization: Normalization) -> Tensor:
        """Return the normaliser of the loss over all held-out dialogues."""
        lengths = [sum(self._item(place).supervised[1:]) for place in range(len(self._chosen))]
        return sft_normalizer(torch.tensor(lengths), normalization).clamp(min=1)

    def micro_batches(self) -> Iterator[Batch]:
        """Make this rank's micro-batches, one after another."""
        for row in self._rows:
            items = [self._item(place) for place in row]
            prepare(items, self._renderer)
            yield self._make(items)

    def _item(self, place: int) -> Rendered:
        """Render a dialogue by its place; the one that is shown again does not count."""
        item, _ = self._draws.sample(self._chosen[place])
        return (
            item if place != _AGAIN else dataclasses.replace(item, supervised=[False] * len(item.supervised))
        )
