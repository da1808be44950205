"""Updates whose loss or gradient is not finite: skipped, and a row of them ends the run."""

from collections.abc import Iterable

import torch
from torch import nn

#: Broken tensors that an error names.
_NAMED = 5


class NonFiniteUpdates(RuntimeError):
    """Too many updates in a row had a loss or gradient that was not finite."""


class UpdateGuard:
    """Lets an update through if it is finite.

    Args:
        limit: Updates in a row that are not finite before the run ends.
        remedy: What the error tells people to do.

    Attributes:
        in_a_row: How many have been skipped since the last that was let through.

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
        """Names of the parameters whose gradient is not finite, if the run ends should one be so.

        To be asked before clipping, which spreads one NaN over all gradients. It costs a pass over them, so
        it is made only where `admits` would need the names.
        """
        if self.in_a_row + 1 < self._limit:
            return []
        found = ((name, parameter.grad) for name, parameter in named_parameters)
        return [name for name, grad in found if grad is not None and not torch.isfinite(grad).all()]

    def admits(self, finite: bool, broken: list[str]) -> bool:
        """Count an update, the same on every rank.

        Args:
            finite: Whether its loss and its gradient are.
            broken: What `broken` found.

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
