"""What holds for a learner on every device: the CPU's tests and the GPU's call the same checks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from posttrain.config import ModelConfig
from posttrain.config.model import AttnImplementation, FusedLayers
from posttrain.media.images import save_image
from posttrain.models.load import forward_hidden, load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.rendering.collation import collate, collate_packed, pad_rows
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.training.core.distributed import ensure_process_group
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import Updates, load_policy
from posttrain.training.core.sharding import Sharding, shard
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.types import Block, Message, text_message

#: A rate at which bfloat16 weights lose nearly every update.
SMALL_RATE = 1e-6


def check_on(device: str, check: Callable[..., None], *arguments: Any) -> None:
    """Call `check(device, *arguments)` in a process of its own, whose process group is made for the device.

    Raises:
        ProcessRaisedException: If it raised.
    """
    start_processes(_called, (check, device, arguments), nprocs=1, start_method="forkserver")


def _called(_rank: int, check: Callable[..., None], device: str, arguments: tuple[Any, ...]) -> None:
    check(torch.device(device), *arguments)


@dataclass
class Pass:
    """A forward and a backward pass.

    Attributes:
        model: The model, wrapped.
        loss: The loss.
        gradients: The whole gradient of each parameter, on the CPU.
        held: Bytes that the forward pass keeps for the backward pass.
    """

    model: nn.Module
    loss: Tensor
    gradients: dict[str, Tensor]
    held: int


def run(
    device: torch.device,
    checkpoint: Path,
    sharding: Sharding = "none",
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    checkpointing: bool = False,
) -> Pass:
    """Run the learner's model forward and backward on dialogues with and without an image."""
    model: Any = load_policy(ModelConfig(family="qwen3_vl", dtype=dtype), checkpoint).train()
    add_supervised_head(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model, sharding, device)
    batch = _batch(checkpoint, device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if device.type == "cuda":
        with torch.no_grad():
            model(**batch)  # cuBLAS takes its workspace at first
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = -model(**batch).mean()
    held = torch.cuda.memory_allocated() - before if device.type == "cuda" else sum(kept.values())
    loss.backward()
    gradients = {
        name: (parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad).cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Pass(model, loss.detach().cpu(), gradients, held)


def _dialogues(renderer: Renderer, checkpoint: Path) -> list[Rendered]:
    """Render a dialogue with an image and one without."""
    image = save_image(Image.radial_gradient("L").convert("RGB"), checkpoint / "images")
    shown = Message("user", (Block("image", image=image), Block("text", text="Which letter is it?")))
    dialogues = [
        [shown, text_message("assistant", "A or B")],
        [text_message("user", "hi"), text_message("assistant", "C" * 20)],
    ]
    return [renderer.render(dialogue) for dialogue in dialogues]


def _batch(checkpoint: Path, device: torch.device) -> dict[str, Tensor]:
    """Make a batch of the dialogues, with labels on their answers."""
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
    items = _dialogues(renderer, checkpoint)
    batch = collate(items, renderer, device)
    supervised = pad_rows([item.supervised for item in items], False, bool).to(device)
    return batch | {"supervised_labels": batch["input_ids"].masked_fill(~supervised, IGNORED)}


def one_rank_has_its_collectives(device: torch.device) -> None:
    """One rank's group reduces tensors of the device, over NCCL on a GPU, and of the CPU."""
    ensure_process_group(device)
    assert device.type == "cpu" or "nccl" in str(dist.get_backend_config())
    for place in {device, torch.device("cpu")}:
        tensor = torch.full((3,), 2.0, device=place)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [2.0] * 3


def shardings_agree(device: torch.device, checkpoint: Path) -> None:
    """Replicas and shards of bfloat16 models give the same loss and gradients, close to float32's."""
    none, sharded = (run(device, checkpoint, sharding) for sharding in ("none", "fsdp2"))
    torch.testing.assert_close(sharded.loss, none.loss)
    torch.testing.assert_close(sharded.gradients, none.gradients, rtol=1e-2, atol=1e-4)
    exact = run(device, checkpoint, dtype="float32")
    assert none.loss.dtype == torch.float32
    torch.testing.assert_close(none.loss, exact.loss, rtol=1e-2, atol=0)
    assert none.gradients.keys() == exact.gradients.keys()
    ours, theirs = (
        torch.cat([gradient.flatten() for gradient in found.gradients.values()]) for found in (none, exact)
    )
    assert {gradient.dtype for gradient in none.gradients.values()} == {torch.float32}
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


def checkpointing_saves_memory_and_nothing_else(device: torch.device, checkpoint: Path) -> None:
    """With gradient checkpointing loss and gradients are the same, and the forward pass keeps less."""
    plain = run(device, checkpoint)
    saving = run(device, checkpoint, checkpointing=True)
    torch.testing.assert_close(saving.loss, plain.loss)
    torch.testing.assert_close(saving.gradients, plain.gradients, rtol=1e-2, atol=1e-4)
    assert saving.held < 0.7 * plain.held


def updates_reach_the_weights(device: torch.device, checkpoint: Path) -> None:
    """At a small rate every master moves, where bfloat16 weights would stay."""
    model = run(device, checkpoint).model
    trained = {name: p for name, p in model.named_parameters() if p.grad is not None and p.ndim == 2}
    before = {name: _whole(parameter).clone() for name, parameter in trained.items()}
    optimizer = build_optimizer([model], "adamw", SMALL_RATE, weight_decay=0.0)
    Updates([model], optimizer, lambda update: 1.0, UpdateGuard(1, ""), max_grad_norm=1.0).step()
    moved = stayed = learned = 0
    for name, parameter in trained.items():
        after = _whole(parameter)
        learned += int((after != before[name]).sum())
        moved += int((after.bfloat16() != before[name].bfloat16()).sum())
        stayed += after.numel()
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert learned > 0.9 * stayed  # rows of the embedding that the batch has not have no gradient
    assert moved < 0.1 * learned


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def kernels_agree(
    device: torch.device,
    checkpoint: Path,
    attn_implementation: AttnImplementation,
    fused_layers: FusedLayers,
) -> None:
    """A packed row's states and gradients are those of PyTorch's own kernels, as far as bfloat16 tells."""
    expected = _packed(device, checkpoint, "sdpa", "none")
    found = _packed(device, checkpoint, attn_implementation, fused_layers)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def _packed(
    device: torch.device,
    checkpoint: Path,
    attn_implementation: AttnImplementation,
    fused_layers: FusedLayers,
) -> tuple[Tensor, Tensor]:
    """Return hidden states of a packed row, and the gradient of a matrix of the first layer."""
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
    model: Any = load_model(checkpoint, attn_implementation=attn_implementation, fused_layers=fused_layers)
    use_packed_attention(model)
    items = _dialogues(renderer, checkpoint)
    row = collate_packed(items, renderer, model.base_model.get_rope_index)
    model.to(device)
    hidden = forward_hidden(model, {name: tensor.to(device) for name, tensor in row.items()})
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0)).to(device)
    (hidden.float() @ direction).square().mean().backward()  # of the states' norm there is no gradient
    gradient = model.get_parameter("model.language_model.layers.0.mlp.down_proj.weight").grad
    return hidden.detach().float(), gradient.float()
