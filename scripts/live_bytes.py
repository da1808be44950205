"""The bytes of the tensors that live while something is computed, and the most that lived at once."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages of tensors; what a kernel takes and gives back by itself is not seen.

    Attributes:
        now: Bytes that live at present.
        peak: The most that lived at once since `peak` was set last.

    Example:
        with LiveBytes() as live:
            live.add(*model.parameters())
            model(batch).sum().backward()
        print(live.peak)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> "LiveBytes":
        live, resize = self, self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = resize(storage, size)
            if storage._cdata in live._sizes:
                live._set(storage._cdata, storage.nbytes())
            return result

        setattr(torch.UntypedStorage, "resize_", resized)  # noqa: B010 (FSDP gathers and frees weights so)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*raised)

    def add(self, *tensors: Tensor) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
            if storage._cdata not in self._sizes:
                self._set(storage._cdata, storage.nbytes())
                weakref.finalize(storage, self._drop, storage._cdata)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count the tensors that it makes."""
        result = function(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result

    def _set(self, key: int, size: int) -> None:
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
