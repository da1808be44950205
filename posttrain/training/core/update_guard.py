"""Skip updates whose loss or gradient is not finite, and end the run after several of them in a row."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: Most tensors that an error names.
_NAMED = 5


class NonFiniteUpdates(RuntimeError):
    """Too many updates in a row had a loss or gradient that was not finite."""


def _is_finite(gradient: Tensor) -> bool:
    """Tell whether every value of a gradient, on whichever rank, is a finite number."""
    finite = torch.isfinite(gradient).all()
    return bool(finite.full_tensor() if isinstance(finite, DTensor) else finite)


class UpdateGuard:
    """Decides whether an update is made: only if it is finite.

    Args:
        limit: Number of updates in a row that may not be finite before the run ends.
        remedy: Advice at the end of the error's message.

    Attributes:
        in_a_row: Number of updates skipped since the last one that was made.

    Example:
        broken = guard.broken(model.named_parameters())
        norm = clip_grad_norm_(model.parameters(), 1.0)
        if guard.admits(math.isfinite(norm), broken):
            optimizer.step()
    """

    def __init__(self, limit: int, remedy: str) -> None:
        self.in_a_row = 0
        self._limit = limit
        self._remedy = remedy

    def broken(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
        """Find the parameters whose gradient is not finite, and return their names.

        Call it before clipping, which spreads one NaN over all gradients. It reads all of them, so it does
        that only if one more skipped update would end the run, and returns nothing otherwise.
        """
        if self.in_a_row + 1 < self._limit:
            return []
        found = ((name, parameter.grad) for name, parameter in named_parameters)
        return [name for name, grad in found if grad is not None and not _is_finite(grad)]

    def admits(self, finite: bool, broken: list[str]) -> bool:
        """Decide whether an update may be made, and count it.

        Args:
            finite: Whether its loss and its gradient are finite, on every rank.
            broken: The names that `broken` returned.

        Returns:
            Whether it may be made.

        Raises:
            NonFiniteUpdates: If too many in a row were not finite.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if not finite and self.in_a_row >= self._limit:
            names = ", ".join(broken[:_NAMED]) + (" …" if len(broken) > _NAMED else "")
            culprit = f"the gradients of {names}" if broken else "the loss"
            raise NonFiniteUpdates(
                f"{self.in_a_row} updates in a row were not finite; no parameter was changed by them. Not"
                f" finite: {culprit}. {self._remedy}"
            )
        return finite
