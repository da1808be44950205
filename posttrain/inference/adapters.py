"""LoRA adapters on their way to an engine: bytes that travel through memory, and files of the node.

A version has a name of its own, so that no cache takes one adapter for another, and its files appear all at
once, so that no engine reads half of one.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import peft
import psutil
from safetensors.torch import save
from torch import Tensor

PREFIX = "posttrain-adapters-"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as PEFT writes it.

    Attributes:
        config: `adapter_config.json`.
        weights: `adapter_model.safetensors`.
        layers: Number of layers that are adapted.
    """

    config: bytes
    weights: bytes
    layers: int

    @classmethod
    def of(cls, config: peft.PeftConfig, tensors: Mapping[str, Tensor]) -> "AdapterFiles":
        """Make the files of an adapter's configuration and its tensors."""
        values = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in config.to_dict().items()
        }
        layers = sum(".lora_B." in name for name in tensors)
        weights = save(dict(tensors), {"format": "pt"})
        return cls(json.dumps(values | {"inference_mode": True}).encode(), weights, layers)


class AdapterFolder:
    """A private folder of this process for the adapters that its engine loads.

    Args:
        parent: Where to make it; the folder of temporary files if None.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = parent or Path(tempfile.gettempdir())
        _remove_leftovers(place)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))

    def write(self, files: AdapterFiles, version: int) -> Path:
        """Write a version's files; return their folder, which appears with all of them in it."""
        arriving = Path(tempfile.mkdtemp(dir=self._folder))
        (arriving / "adapter_config.json").write_bytes(files.config)
        (arriving / "adapter_model.safetensors").write_bytes(files.weights)
        path = self._folder / f"policy-{version}"
        if path.is_dir():  # published again
            shutil.rmtree(path)
        return arriving.rename(path)

    def keep(self, versions: int) -> None:
        """Remove all but the newest versions."""
        written = sorted(self._folder.glob("policy-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for path in written[:-versions]:
            shutil.rmtree(path)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
