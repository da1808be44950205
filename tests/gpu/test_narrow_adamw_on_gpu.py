"""AdamW where memory is scarce, on a GPU: the CPU's moments, and its weights but for roundings."""

import pytest
import torch
from torch import nn

from posttrain.training.core.optimizers import build_optimizer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("name", "dtype"), [("adamw_bf16", torch.bfloat16), ("adamw_8bit", torch.float32)], ids=str
)
def test_a_gpu_updates_as_the_cpu_does(name, dtype):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(64, 512, generator=generator).to(dtype) for _ in range(6))
    found = []
    for device in ("cpu", "cuda"):
        weights = nn.Parameter(start.to(device, copy=True))
        optimizer = build_optimizer([nn.ParameterDict({"weights": weights})], name, 1e-3, 0.01)
        for gradient in gradients:
            weights.grad = gradient.to(device)
            optimizer.step()
        state = {key: value.cpu() for key, value in optimizer.state[weights].items()}
        found.append((weights.detach().cpu().float(), state))
    (weights, state), (on_gpu, state_on_gpu) = found
    assert {key: value.dtype for key, value in state.items()} == {
        key: value.dtype for key, value in state_on_gpu.items()
    }
    moved, moved_on_gpu = weights - start.float(), on_gpu - start.float()
    assert moved_on_gpu.mean().item() == pytest.approx(moved.mean().item(), abs=1e-4)
    if name == "adamw_8bit":
        torch.testing.assert_close(on_gpu, weights, rtol=0, atol=5e-4)
    else:
        torch.testing.assert_close(state_on_gpu["exp_avg"], state["exp_avg"], rtol=1e-5, atol=1e-6)
        largest = torch.maximum(weights.abs(), start.float().abs())
        unit = torch.ldexp(torch.ones_like(weights), torch.frexp(largest).exponent - 8)
        assert ((on_gpu - weights).abs() <= 2 * len(gradients) * unit).all()  # the GPU draws other numbers
