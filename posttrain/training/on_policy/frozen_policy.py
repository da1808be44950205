"""A model beside the policy that is not trained: a reference to stay near, or a teacher to learn from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.models.lora import adapters_off, only_adapter
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.rendering.collation import RopeIndex
from posttrain.rendering.rendering import Renderer
from posttrain.run.home import fetch_folder
from posttrain.training.core.distributed import barrier
from posttrain.training.core.policy import load_policy
from posttrain.training.core.sharding import reshard, shard
from posttrain.training.on_policy.packed_policy import PackedModel, PackedPolicy
from posttrain.types import Trajectory


@dataclass(frozen=True)
class Beside:
    """The frozen models that a stage may need beside its policy.

    Attributes:
        origin: The weights that the stage started from, which a reference has.
        teacher: A teacher's weights, or an adapter of the policy's own base; None without a teacher.
    """

    origin: Path
    teacher: Path | None = None


@dataclass(frozen=True)
class LastStates:
    """What a model's distributions at some places follow from.

    Attributes:
        hidden: [T, D] last hidden states before the sampled tokens, without gradient.
        head: [V, D] weight of the head, whole.
        logprobs: [T] log-probs of the sampled tokens.
    """

    hidden: Tensor
    head: Tensor
    logprobs: Tensor


class FrozenPolicy:
    """A frozen model of one rank, whole or its part, at the sampled tokens of packed rows of trajectories.

    Args:
        packed: The model.
        acting: Makes the model compute as it is to, within a context; it may be the policy's own.

    Example:
        reference = FrozenPolicy.base_of(policy)  # under LoRA: the base, with no second copy of it
        reference = FrozenPolicy.load(model_config, stage, checkpoint, device)
        logprobs = reference.logprobs(row.trajectories)
    """

    def __init__(
        self, packed: PackedModel, acting: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._packed = packed
        self._acting = acting

    @classmethod
    def load(
        cls, model_config: ModelConfig, stage: OnPolicyStage, checkpoint: Path, device: torch.device
    ) -> "FrozenPolicy":
        """Load a checkpoint's weights, sharded by layer where the policy is (call on every rank).

        Args:
            model_config: How the run's models compute, and how images are sized.
            stage: The stage's settings.
            checkpoint: A model's directory, or Hugging Face id.
            device: Where to compute.
        """
        weights = fetch_folder(checkpoint)
        renderer = Renderer.from_config(weights, model_config.model_copy(update={"family": None})).on(device)
        model = load_policy(model_config, weights).requires_grad_(False).eval()
        rope_index: RopeIndex | None = getattr(model.base_model, "get_rope_index", None)
        add_supervised_head(model)
        use_packed_attention(model)
        barrier()
        shard(model, stage.sharding, device)
        return cls(
            PackedModel(model, rope_index, renderer, device, stage.batch_tokens, stage.rollout.temperature)
        )

    @classmethod
    def base_of(cls, policy: PackedPolicy) -> "FrozenPolicy":
        """Take a policy's base, with its adapters off."""
        assert isinstance(policy.model, PeftModel)
        return cls(policy, partial(adapters_off, policy.model))

    @classmethod
    def adapter_of(cls, policy: PackedPolicy, name: str) -> "FrozenPolicy":
        """Take a policy's base with another of its adapters (see `PackedPolicy`), which is not trained."""
        return cls(policy, partial(only_adapter, policy.model, name))

    @property
    def renderer(self) -> Renderer:
        """The renderer of the model's checkpoint."""
        return self._packed.renderer

    @torch.no_grad()
    def logprobs(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """Compute the log-probs [T] of the sampled tokens of a row, one trajectory after another."""
        with self._acting():
            logprobs, _, _ = self._packed.logprobs(trajectories)
        return logprobs

    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of a few trajectories' sampled tokens; see `PackedModel.score`."""
        with self._acting():
            return self._packed.score(trajectories)

    @contextmanager
    def states(self, trajectories: Sequence[Trajectory]) -> Iterator[LastStates]:
        """Compute the last hidden states before the sampled tokens of a row.

        The head's weight is whole within this context, which ends once a loss of them has gone backward.
        """
        with torch.no_grad(), self._acting():
            (logprobs, _, _), (hidden, head) = self._packed.logprobs_beside(
                trajectories, lambda hidden, head: (hidden, head.detach())
            )
        yield LastStates(hidden, head, logprobs)
        if not isinstance(self._packed, PackedPolicy):  # the policy's own backward pass gives its parts back
            reshard(self._packed.model)
