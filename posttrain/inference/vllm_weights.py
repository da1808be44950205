"""The weights of vLLM's model: replaced between two steps, and nothing of the older ones taken for theirs."""

from itertools import count
from pathlib import Path

from safetensors import safe_open
from vllm import LLMEngine

from posttrain.inference.engine import EngineError, OnPublish
from posttrain.inference.weight_transfer import Manifest, TransferGroup
from posttrain.inference.weight_transfer_engine import join_group, receive_tensors


class ModelWeights:
    """The weights that an engine serves.

    Attributes:
        version: The policy version that they are.
        cache_salt: Only requests with the same salt share keys and values of a prefix.
    """

    version: int
    cache_salt: str

    def __init__(self, engine: LLMEngine, checkpoint: Path, on_publish: OnPublish) -> None:
        """Begin with those of a checkpoint, as version 0.

        Args:
            engine: The engine, which has loaded them.
            checkpoint: The checkpoint's directory, or Hugging Face id.
            on_publish: What becomes of keys and values that older weights computed for requests in flight.
        """
        self._engine = engine
        self._on_publish = on_publish
        self._tensor_names = _tensor_names(checkpoint)
        self._coming: int | None = None
        self._changes = count()
        self._set_version(0)

    def load(self, path: Path, version: int) -> None:
        """Load those of another checkpoint of the same model.

        Raises:
            EngineError: If the checkpoint has other tensors than the model.
        """
        names = _tensor_names(path)
        self._tensor_names = self._tensor_names or names
        if names != self._tensor_names or not names:
            raise EngineError(
                f"{path} does not hold the tensors of the model in use; missing or added:"
                f" {', '.join(sorted(names ^ self._tensor_names)[:5]) or 'all'}"
            )
        self._coming = version
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        self._serve(version)

    def join(self, group: TransferGroup) -> None:
        """Connect every rank to the learners that will send weights; see `Engine.join_transfer`."""
        join_group(self._engine, group)

    def receive(self, manifest: Manifest, version: int) -> None:
        """Receive weights from the learners; see `Engine.receive_weights`."""
        if self._tensor_names and (other := manifest.differences(self._tensor_names)):
            raise EngineError(
                "the learners send other tensors than those of the model in use; missing or added:"
                f" {', '.join(other[:5])}"
            )
        self._coming = version
        receive_tensors(self._engine, manifest)
        self._serve(version)

    def require_whole(self) -> None:
        """Check that all of the weights are of one version.

        Raises:
            EngineError: If loading or receiving them broke off.
        """
        if self._coming is not None:
            raise EngineError(
                f"the weights of version {self._coming} came in part only:"
                " load them again before anything is sampled"
            )

    def _serve(self, version: int) -> None:
        """Have nothing computed by older weights be taken for the new ones', between two steps.

        Running requests either start anew from the tokens that they have, or keep their keys and values. In
        any case no other request takes these for its own: the caches of images are cleared, and prefixes are
        shared within a version only.
        """
        self._engine.collective_rpc("repack_heads")
        if self._on_publish == "recompute":
            self._engine.reset_prefix_cache(reset_running_requests=True)  # or raises
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self._set_version(version)
        self._coming = None

    def _set_version(self, version: int) -> None:
        """Have what is sampled from now on bear a version."""
        self.version = version
        self.cache_salt = f"weights-{next(self._changes)}"
        self._engine.set_weight_version(str(version))


def _tensor_names(checkpoint: Path) -> set[str]:
    """List the tensors in a checkpoint's safetensors files; none for a Hugging Face id."""
    names: set[str] = set()
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return names
