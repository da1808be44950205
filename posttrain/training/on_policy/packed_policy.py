"""The policy that a learner trains: a model that takes packed rows of trajectories, and gives log-probs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.data.packing import pack
from posttrain.models.load import loaded_type
from posttrain.models.lora import base_named_by, is_adapter, with_lora
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.rendering.collation import RopeIndex, collate_packed
from posttrain.rendering.rendering import Renderer
from posttrain.run.home import fetch_folder
from posttrain.training.core.distributed import barrier
from posttrain.training.core.policy import load_policy
from posttrain.training.core.sharding import shard
from posttrain.types import Trajectory


class PackedPolicy:
    """A model of one rank, whole or its part, with adapters around it where the stage trains those.

    Args:
        model_config: How to load and freeze the model.
        stage: The stage's settings.
        checkpoint: A model's weights; or adapters of this stage, whose base is loaded as well. On other nodes
            than the run's own both are fetched from there.
        device: Where to compute.
        seed: Seed of the first matrix of each new adapter.

    Attributes:
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
    ) -> None:
        self._device = device
        self._capacity = stage.batch_tokens
        self.checkpoint = fetch_folder(checkpoint)
        base = Path(base_named_by(self.checkpoint)) if is_adapter(self.checkpoint) else checkpoint
        weights = fetch_folder(base)
        self.renderer = Renderer.from_config(weights, model_config).on(device)
        self._banned = torch.tensor(self.renderer.banned_token_ids, device=device)
        quantization = stage.lora.quantization if stage.lora is not None else None
        model = load_policy(model_config, weights, quantization)
        # Adapters are written with the name of their base, which whoever reads them at home has to find.
        model.name_or_path = model.config._name_or_path = str(base)
        # Looked up here, since adapters and FSDP2 hide it; a text model has none.
        self._rope_index: RopeIndex | None = getattr(model.base_model, "get_rope_index", None)
        add_supervised_head(model)
        use_packed_attention(model)
        if stage.gradient_checkpointing:
            model.gradient_checkpointing_enable(offload=stage.offload_activations)
        self.model: PreTrainedModel | PeftModel = model
        if stage.lora is not None:
            self.model = with_lora(model, stage.lora, seed)
            if is_adapter(self.checkpoint):
                set_peft_model_state_dict(self.model, load_peft_weights(str(self.checkpoint), device="cpu"))
        barrier()  # a rank whose disk is slow has its weights, too: what follows has a deadline
        shard(self.model, stage.sharding, device, masters=stage.float32_masters)
        self.model.train()  # nothing drops out; and bitsandbytes packs quantised weights otherwise

    @property
    def exact(self) -> bool:
        """Whether the model computes in float32, where only rounding errors are left."""
        return loaded_type(self.model) == torch.float32

    def logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-probs, entropies and the banned tokens' probability at the sampled tokens of a row.

        Args:
            trajectories: The row.

        Returns:
            Three tensors [T], one trajectory after another; the first two with gradients.
        """
        batch = collate_packed(trajectories, self.renderer, self._rope_index, images_once=True)
        sampled = torch.from_numpy(np.concatenate([np.array(each.sampled) for each in trajectories]))
        labels = batch["input_ids"].masked_fill(~sampled, IGNORED)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        return self.model(**batch, supervised_labels=labels.to(self._device), watched=self._banned)

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of the sampled tokens of a few trajectories with the present weights.

        Every rank calls this with the same trajectories, and computes all of them.

        Returns:
            For each trajectory those of its sampled tokens, in order.
        """
        lengths = [len(each.token_ids) for each in trajectories]
        [rows] = pack(lengths, max(self._capacity, *lengths))
        found: dict[int, list[float]] = {}
        for places in rows:
            chosen = [trajectories[place] for place in places]
            logprobs, _, _ = self.logprobs(chosen)
            counts = [sum(each.sampled) for each in chosen]
            found |= zip(places, (each.tolist() for each in logprobs.cpu().split(counts)), strict=True)
        return [found[place] for place in range(len(trajectories))]
