"""AdamW where memory is scarce: over weights that are held in bfloat16, or with moments in 8 bits.

torch's own AdamW computes, in float32. Parameters go through it in pieces, so that little is wide at once.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from posttrain.training.core.sharding import zeros_beside

#: Numbers of a parameter that are updated at once.
PIECE = 2**24
#: Bits of a float32 that bfloat16 does not have.
DROPPED = 16
#: How many numbers in 8 bits share a scale, the best first; the kernels for CUDA take none between or below.
BLOCKS = (256, 128, 64)
#: The names of the moments among a parameter's states.
MOMENTS = ("exp_avg", "exp_avg_sq")
#: What the name of a moment's scales ends with.
SCALE = "_scale"


class Group(TypedDict):
    """Parameters with a decay of their own."""

    params: list[nn.Parameter]
    weight_decay: float


class NarrowAdamW(torch.optim.Optimizer, ABC):
    """AdamW over tensors that are not all held in float32.

    Args:
        groups: The parameters, FSDP2's or whole ones.
        learning_rate: The learning rate.
    """

    def __init__(self, groups: list[Group], learning_rate: float) -> None:
        super().__init__(
            [dict(group) for group in groups], {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
        )

    @abstractmethod
    def zero_moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Make the moments that a parameter starts with, split over the ranks as it is."""

    @abstractmethod
    def advance(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update what this rank holds of a parameter, and of its moments."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.zero_moments(parameter), step=torch.zeros(()))
                    self.advance(parameter, group)
                    state["step"] += 1

    def pieces(self, parameter: nn.Parameter) -> Iterator[dict[str, Tensor]]:
        """Yield what this rank holds of a parameter in pieces: its `value`, `gradient` and states by name."""
        held = {"value": parameter, "gradient": parameter.grad} | self.state[parameter]
        flat = {name: _local(tensor).view(-1) for name, tensor in held.items() if name != "step"}
        total = flat["value"].numel()
        for start in range(0, total, PIECE):
            end = min(start + PIECE, total)
            yield {
                name: tensor[start * tensor.numel() // total : end * tensor.numel() // total]
                for name, tensor in flat.items()
            }


class RoundedAdamW(NarrowAdamW):
    """AdamW over bfloat16 weights, which rounds every update up or down at random.

    A weight is rounded to one of its two neighbours with the probabilities that make the mean right, so
    updates that are far smaller than a rounding unit add up over many steps. Moments are float32.

    The draws follow from the parameter's place among the others, its updates so far and the rank's part of
    it: replicas round alike, and a resumed run rounds like one that was not interrupted.
    """

    def __init__(self, groups: list[Group], learning_rate: float) -> None:
        super().__init__(groups, learning_rate)
        parameters = [parameter for group in groups for parameter in group["params"]]
        self._places = {parameter: place for place, parameter in enumerate(parameters)}

    def zero_moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Make moments in float32."""
        return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in MOMENTS}

    def advance(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update a parameter in float32, and round it."""
        step = self.state[parameter]["step"]
        source = (self._places[parameter], step.item(), *_part(parameter))
        draws = torch.Generator(parameter.device).manual_seed(zlib.crc32(repr(source).encode()))
        for piece in self.pieces(parameter):
            value = piece["value"].float()
            update(value, piece["gradient"].float(), [piece[name] for name in MOMENTS], step, group)
            piece["value"].copy_(rounded(value, draws))


class EightBitAdamW(NarrowAdamW):
    """AdamW over float32 weights whose moments are held in 8 bits (https://arxiv.org/abs/2110.02861).

    Each block of a moment has a scale of its own; bitsandbytes quantises. A block lies within a row, and
    FSDP2 splits parameters by rows, so training and its checkpoints are the same on any number of ranks.
    Vectors, and matrices whose rows are not made up of whole blocks, have moments in float32.

    Raises:
        ModuleNotFoundError: If bitsandbytes is missing.
    """

    def __init__(self, groups: list[Group], learning_rate: float) -> None:
        super().__init__(groups, learning_rate)
        try:
            self._bitsandbytes = import_module("bitsandbytes.functional")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "optimizer: adamw_8bit needs bitsandbytes: pip install 'posttrain[adamw-8bit]'"
            ) from error
        device = next(parameter.device for group in groups for parameter in group["params"])
        self._values = {  # of the codes: those of the mean have a sign
            name: self._bitsandbytes.create_dynamic_map(signed=name == MOMENTS[0]).to(device)
            for name in MOMENTS
        }

    def zero_moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Make codes and scales; or moments in float32 where there are no blocks."""
        row = math.prod(parameter.shape[1:])
        block = next((size for size in BLOCKS if row % size == 0), None)
        if block is None:
            return {name: torch.zeros_like(parameter, dtype=torch.float32) for name in MOMENTS}
        codes = {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in MOMENTS}
        size = (len(parameter), row // block)
        return codes | {name + SCALE: zeros_beside(parameter, size, torch.float32) for name in MOMENTS}

    def advance(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Update a parameter and its moments in float32, and quantise the moments."""
        for piece in self.pieces(parameter):
            moments = [self._wide(piece, name) for name in MOMENTS]
            update(piece["value"], piece["gradient"], moments, self.state[parameter]["step"], group)
            for name, moment in zip(MOMENTS, moments, strict=True):
                self._narrow(piece, name, moment)

    def _wide(self, piece: dict[str, Tensor], name: str) -> Tensor:
        """Return a moment in float32."""
        codes, scales = piece[name], piece.get(name + SCALE)
        if scales is None:
            return codes
        return self._bitsandbytes.dequantize_blockwise(
            codes, absmax=scales, code=self._values[name], blocksize=len(codes) // len(scales)
        )

    def _narrow(self, piece: dict[str, Tensor], name: str, moment: Tensor) -> None:
        """Keep a moment, in 8 bits if it has scales."""
        codes, scales = piece[name], piece.get(name + SCALE)
        if scales is not None:
            block = len(codes) // len(scales)
            found, how = self._bitsandbytes.quantize_blockwise(moment, self._values[name], blocksize=block)
            codes.copy_(found)
            scales.copy_(how.absmax)


def update(
    value: Tensor, gradient: Tensor, moments: Sequence[Tensor], step: Tensor, group: dict[str, Any]
) -> None:
    """Update float32 weights and moments in place.

    Args:
        value: The weights.
        gradient: Their gradient.
        moments: Its mean over the updates, and that of its square.
        step: Number of updates before this one.
        group: The settings of the weights' group.
    """
    beta1, beta2 = group["betas"]
    adamw(
        [value],
        [gradient],
        [moments[0]],
        [moments[1]],
        [],
        [step.clone()],  # which is counted up
        foreach=False,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def rounded(values: Tensor, draws: torch.Generator) -> Tensor:
    """Round to bfloat16 at random, so that the expected result is the value itself.

    A number below the last bit that is kept is added, all being as likely, and what is below is cut off.

    Args:
        values: Float32 values.
        draws: Where the numbers come from.
    """
    added = torch.randint(2**DROPPED, values.shape, generator=draws, dtype=torch.int32, device=values.device)
    bits = values.view(torch.int32) + added
    return bits.bitwise_and_(-(2**DROPPED)).view(torch.float32).to(torch.bfloat16)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _part(parameter: Tensor) -> list[int]:
    """Return which part of a parameter this rank holds; nothing if it holds all."""
    if not isinstance(parameter, DTensor):
        return []
    coordinate = parameter.device_mesh.get_coordinate() or ()
    return [place for place, how in zip(coordinate, parameter.placements, strict=True) if how.is_shard()]
