"""vLLM with a fault of publishing, which a test turns on by writing its name into a file."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.inference.vllm_engine import VllmEngine
from posttrain.inference.weight_transfer import Manifest
from posttrain.inference.weight_transfer_engine import GlooTransferEngine

#: The file's path, in the environment of the worker.
FAULT_FILE = "POSTTRAIN_TEST_FAULT"
#: Seconds that a stalled engine stalls.
STALL_S = 6.0


def fault() -> str:
    file = Path(os.environ[FAULT_FILE])
    return file.read_text() if file.exists() else ""


class FaultyTransfer(GlooTransferEngine):
    """Receives all tensors and loads none or half of them, or breaks off between two buckets."""

    def receive_weights(self, update_info: Any) -> None:
        model: Any = self.model
        load = model.load_weights
        model.load_weights = lambda tensors: load(self._faulty(tensors, len(update_info.names)))
        try:
            super().receive_weights(update_info)
        finally:
            del model.load_weights

    def _faulty(self, tensors: Iterator[tuple[str, Tensor]], number: int) -> Iterator[tuple[str, Tensor]]:
        kept = {"withheld": 0, "half": number // 2}.get(fault(), number)
        for index, tensor in enumerate(tensors):
            if index == number // 2 and fault() == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if index == number // 2 and fault() == "stalls":
                time.sleep(STALL_S)
            if index < kept:
                yield tensor


class FaultyEngine(VllmEngine):
    """An engine with faults: `withheld`, `half`, `dies`, `stalls`, `stale images` and `dropped adapter`."""

    def receive_weights(self, manifest: Manifest, version: int) -> None:
        transfer: Any = self._engine.model_executor.driver_worker.worker.weight_transfer_engine
        transfer.__class__ = FaultyTransfer
        reset = self._engine.reset_encoder_cache
        if fault() == "stale images":
            self._engine.reset_encoder_cache = lambda: None
        try:
            super().receive_weights(manifest, version)
        finally:
            self._engine.reset_encoder_cache = reset

    def load_adapter(self, path: Path, version: int) -> int:
        before = self._adapters.newest
        changed = super().load_adapter(path, version)
        if fault() == "dropped adapter":
            self._adapters.newest = before
        return changed
