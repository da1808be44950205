"""The LoRA adapters in an engine: one for new requests, and those that turns in flight began with."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from safetensors import safe_open
from vllm import LLMEngine
from vllm.lora.request import LoRARequest

from posttrain.inference.engine import AdapterSlots, EngineError
from posttrain.inference.vllm_worker import LoadedAdapter

#: Most modules that a message names.
NAMED = 5


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter.

    Attributes:
        version: The policy version that it is.
        request: Its name and number in vLLM.
    """

    version: int
    request: LoRARequest


class Adapters:
    """Loads and unloads the adapters of an engine.

    Attributes:
        newest: The adapter of new requests; None before the first.
    """

    newest: Adapter | None = None

    def __init__(self, engine: LLMEngine, slots: AdapterSlots | None) -> None:
        """Begin with none.

        Args:
            engine: The engine.
            slots: Room for them, if there is any.
        """
        self._engine = engine
        self._slots = slots
        self._loaded: dict[int, Adapter] = {}
        self._ids = count(1)
        if slots is not None:
            engine.collective_rpc("leave_output_matrix_alone")

    def load(self, path: Path, version: int, in_use: Iterable[Adapter | None]) -> int:
        """Load an adapter for all requests from now on, and then unload those that no request uses.

        Each load has a name of its own, so that no cache can take what one adapter computed for another's.

        Args:
            path: Directory of an adapter in PEFT's format.
            version: The policy version that it is.
            in_use: The adapters of requests in flight.

        Returns:
            Number of modules that it changes, each matrix that vLLM fuses with others counted for itself.

        Raises:
            EngineError: If there is no room for it, or if a part of it would change nothing.
        """
        if self._slots is None:
            raise EngineError(
                f"version {version} is an adapter, and the engine was started without room for any"
            )
        self.unload_idle(in_use)
        if len(self._loaded) >= self._slots.resident:
            versions = sorted(adapter.version for adapter in self._loaded.values())
            raise EngineError(
                f"version {version} finds no room: the engine holds the {len(versions)} adapters of versions"
                f" {', '.join(map(str, versions))}, which requests in flight use"
            )
        number = next(self._ids)
        request = LoRARequest(f"policy-{version}-{number}", number, str(path))
        self._engine.add_lora(request)
        try:
            changed = self._changed_modules(path, number)
        except EngineError:
            self._engine.remove_lora(number)
            raise
        self.newest = self._loaded[number] = Adapter(version, request)
        self.unload_idle(in_use)
        return changed

    def unload_idle(self, in_use: Iterable[Adapter | None]) -> None:
        """Unload the adapters that neither a request in flight nor the next one uses."""
        needed = {adapter.request.lora_int_id for adapter in (*in_use, self.newest) if adapter is not None}
        for number in self._loaded.keys() - needed:
            self._engine.remove_lora(number)
            del self._loaded[number]

    def forget(self) -> None:
        """Begin with none again, because new weights of the model replaced those that adapters were for."""
        for number in self._loaded:
            self._engine.remove_lora(number)
        self._loaded.clear()
        self.newest = None

    def _changed_modules(self, path: Path, number: int) -> int:
        """Count the modules that a loaded adapter changes, on every rank.

        vLLM loads tensors without a place in the model like any others, and is silent about them.
        """
        in_file = _adapted_in(path)
        ranks: list[LoadedAdapter] = self._engine.collective_rpc("loaded_adapter", args=(number,))
        for rank in ranks:
            if rank.without_place or rank.changed != in_file:
                names = ", ".join(rank.without_place[:NAMED]) or "those that vLLM left out"
                raise EngineError(
                    f"{path} changes {in_file} modules, but the engine's model only {rank.changed} of them;"
                    f" without a place in it: {names}. Adapters of the vision tower need an engine that is"
                    " started for them; those of the output matrix or the embeddings are not served"
                )
        return in_file


def _adapted_in(path: Path) -> int:
    """Count the modules that an adapter's file changes; experts, whose layouts differ, are left out."""
    with safe_open(path / "adapter_model.safetensors", framework="pt") as tensors:
        names = {name.partition(".lora_A.")[0] for name in tensors.keys() if ".lora_A." in name}  # noqa: SIM118
    return sum(".experts" not in name for name in names)
