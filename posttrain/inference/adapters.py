"""LoRA adapters on their way to an engine: bytes in memory, and files only while it loads them."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peft
from safetensors.torch import save
from torch import Tensor


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

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Write the files to a private folder of this node, which is removed after this context.

        Engines read an adapter once, when they load it, and keep it in memory.
        """
        with tempfile.TemporaryDirectory(prefix="posttrain-adapter-") as folder:
            (Path(folder) / "adapter_config.json").write_bytes(self.config)
            (Path(folder) / "adapter_model.safetensors").write_bytes(self.weights)
            yield Path(folder)
