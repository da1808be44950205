"""Optimisers by name: AdamW in several forms, and Muon with AdamW behind one interface."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from posttrain.config.learning import OptimizerName
from posttrain.training.core.narrow_adamw import EightBitAdamW, Group, RoundedAdamW

#: Muon's step has the size of its learning rate in every direction; on the tiny model twice AdamW's
#: rate for matrices trained best.
MUON_RATE = 2.0
#: One kernel for all parameters: the loop over them takes three times as long for a small model on a CPU, and
#: on a GPU a copy of all second moments.
FUSED = True
#: Matrices whose rows are looked up one by one, which Muon's orthogonalisation does not suit.
LOOKED_UP = ("embed_tokens", "pos_embed", "lm_head")


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for everything else.

    It behaves as one optimiser: its `param_groups` are those of both parts, so that schedulers and gradient
    scalers work as with any other.

    Args:
        muon: The optimiser of the matrices.
        adamw: The optimiser of all other parameters.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = (muon, adamw)
        self.defaults = {}

    @property
    def param_groups(self) -> list[dict[str, object]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The groups of both parts, Muon's first."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, object]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Each parameter's state, over both parts."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure")
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear every gradient."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> StateDict:
        """Return the states of both parts."""
        return {"muon": self.parts[0].state_dict(), "adamw": self.parts[1].state_dict()}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore both parts from what `state_dict` returned."""
        self.parts[0].load_state_dict(state_dict["muon"])
        self.parts[1].load_state_dict(state_dict["adamw"])

    def __repr__(self) -> str:
        return f"MuonWithAdamW({self.parts[0]!r}, {self.parts[1]!r})"


def build_optimizer(
    modules: Iterable[nn.Module], name: OptimizerName, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make an optimiser of the parameters that require gradients.

    Args:
        modules: The modules whose parameters to train.
        name: `adamw`; `adamw_8bit` (see `EightBitAdamW`); `adamw_bf16` (for weights in bfloat16, see
            `RoundedAdamW`); or `muon` (Muon for matrices at twice the rate, AdamW for the rest).
        learning_rate: AdamW's rate.
        weight_decay: Decoupled decay of matrices; vectors and embeddings are not decayed.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                is_matrix = parameter.ndim == 2 and not any(part in key for part in LOOKED_UP)
                (matrices if is_matrix else others).append(parameter)
    if name == "muon":  # either may have nothing to do, as AdamW with adapters, which are all matrices
        muon = torch.optim.Muon(
            [{"params": matrices}], lr=learning_rate * MUON_RATE, weight_decay=weight_decay
        )
        adamw = torch.optim.AdamW([{"params": others}], lr=learning_rate, weight_decay=0.0, fused=FUSED)
        return MuonWithAdamW(muon, adamw)
    groups: list[Group] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if name == "adamw_8bit":
        return EightBitAdamW(groups, learning_rate)
    if name == "adamw_bf16":
        return RoundedAdamW(groups, learning_rate)
    return torch.optim.AdamW([dict(group) for group in groups], lr=learning_rate, fused=FUSED)
