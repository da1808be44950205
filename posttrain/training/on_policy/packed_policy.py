"""Models that take packed rows of trajectories, and give log-probs; the policy of a learner is one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.data.packing import pack
from posttrain.models.load import loaded_type
from posttrain.models.lora import add_frozen_adapter, base_named_by, is_adapter, with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.rendering.collation import RopeIndex, collate_packed
from posttrain.rendering.rendering import Renderer
from posttrain.run.home import fetch_folder
from posttrain.training.core.distributed import barrier
from posttrain.training.core.policy import load_policy
from posttrain.training.core.sharding import shard
from posttrain.types import Trajectory

R = TypeVar("R")


class PackedModel:
    """A model of one rank, whole or its part, that takes packed rows of trajectories.

    Args:
        model: The model, with adapters around it or none, sharded or not yet.
        rope_index: `get_rope_index` of its backbone, which adapters and FSDP2 hide; None for a text model.
        renderer: The renderer of its checkpoint.
        device: Where to compute.
        capacity: Most tokens of a row, unless a single trajectory is longer.
        temperature: That at which episodes are sampled.

    Attributes:
        model: The model.
        renderer: The renderer.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        rope_index: RopeIndex | None,
        renderer: Renderer,
        device: torch.device,
        capacity: int,
        temperature: float = 1.0,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self._rope_index = rope_index
        self._device = device
        self._capacity = capacity
        self._temperature = temperature
        self._banned = torch.tensor(renderer.banned_token_ids, device=device)

    @property
    def exact(self) -> bool:
        """Whether the model computes in float32, where only rounding errors are left."""
        return loaded_type(self.model) == torch.float32

    def logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-probs, entropies and the banned tokens' probability at the sampled tokens of a row.

        They are those of the distribution that episodes are sampled from, at its temperature.

        Args:
            trajectories: The row.

        Returns:
            Three tensors [T], one trajectory after another; the first two with gradients.
        """
        return self._run(trajectories, None, self._temperature)

    def logprobs_beside(
        self, trajectories: Sequence[Trajectory], beside: Callable[[Tensor, Tensor], R]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], R]:
        """Compute what `logprobs` does, and something else of the same pass.

        Args:
            trajectories: The row.
            beside: Called with the last hidden states [T, D] before sampled tokens, and the head's weight.
        """
        *found, other = self._run(trajectories, beside, self._temperature)
        logprobs, entropy, banned = found
        return (logprobs, entropy, banned), other

    def _run(
        self,
        trajectories: Sequence[Trajectory],
        beside: Callable[[Tensor, Tensor], R] | None,
        temperature: float,
    ) -> Any:
        batch = collate_packed(trajectories, self.renderer, self._rope_index, images_once=True)
        sampled = torch.from_numpy(np.concatenate([np.array(each.sampled) for each in trajectories]))
        labels = batch["input_ids"].masked_fill(~sampled, IGNORED)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        return self.model(
            **batch,
            supervised_labels=labels.to(self._device),
            watched=self._banned,
            beside=beside,
            temperature=temperature,
        )

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of the sampled tokens of a few trajectories with the present weights.

        They are at temperature 1, as those that engines give of sequences that they did not sample.

        Every rank that holds a part of the weights calls this with the same trajectories, and computes all
        of them.

        Returns:
            For each trajectory those of its sampled tokens, in order.
        """
        found: dict[int, list[float]] = {}
        for places in self.rows(trajectories):
            chosen = [trajectories[place] for place in places]
            logprobs, _, _ = self._run(chosen, None, 1.0)
            counts = [sum(each.sampled) for each in chosen]
            found |= zip(places, (each.tolist() for each in logprobs.cpu().split(counts)), strict=True)
        return [found[place] for place in range(len(trajectories))]

    def rows(self, trajectories: Sequence[Trajectory]) -> list[list[int]]:
        """Deal a few trajectories into rows, by their places."""
        lengths = [len(each.token_ids) for each in trajectories]
        [rows] = pack(lengths, max(self._capacity, *lengths))
        return rows


class PackedPolicy(PackedModel):
    """A model of one rank, whole or its part, with adapters around it where the stage trains those.

    Args:
        model_config: How to load and freeze the model.
        stage: The stage's settings.
        checkpoint: A model's weights; or adapters of this stage, whose base is loaded as well. On other nodes
            than the run's own both are fetched from there.
        device: Where to compute.
        seed: Seed of the first matrix of each new adapter.
        others: Adapters of the same base that stand beside those that are trained, by name.

    Attributes:
        base: The weights that adapters are for; the checkpoint itself without adapters.
        model: The model, sharded.
        renderer: The renderer of the checkpoint.
        checkpoint: Where the checkpoint can be read on this node.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        stage: OnPolicyStage,
        checkpoint: Path,
        device: torch.device,
        seed: int,
        others: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.checkpoint = fetch_folder(checkpoint)
        base = Path(base_named_by(self.checkpoint)) if is_adapter(self.checkpoint) else checkpoint
        self.base = base
        weights = fetch_folder(base)
        renderer = Renderer.from_config(weights, model_config).on(device)
        quantization = stage.lora.quantization if stage.lora is not None else None
        model = load_policy(model_config, weights, quantization)
        # Adapters are written with the name of their base, which whoever reads them at home has to find.
        model.name_or_path = model.config._name_or_path = str(base)
        # Looked up here, since adapters and FSDP2 hide it; a text model has none.
        rope_index: RopeIndex | None = getattr(model.base_model, "get_rope_index", None)
        add_supervised_head(model)
        use_packed_attention(model)
        if stage.gradient_checkpointing:
            model.gradient_checkpointing_enable(offload=stage.offload_activations)
        whole: PreTrainedModel | PeftModel = model
        if stage.lora is not None:
            whole = with_lora(model, stage.lora, seed)
            if is_adapter(self.checkpoint):
                set_peft_model_state_dict(whole, load_peft_weights(str(self.checkpoint), device="cpu"))
            for name, path in others.items():
                add_frozen_adapter(whole, name, fetch_folder(path))
        super().__init__(whole, rope_index, renderer, device, stage.batch_tokens, stage.rollout.temperature)
        barrier()  # a rank whose disk is slow has its weights, too: what follows has a deadline
        shard(self.model, stage.sharding, device, masters=stage.float32_masters)
        self.model.train()  # nothing drops out; and bitsandbytes packs quantised weights otherwise
