"""Objectives of reinforcement learning, and the groups that they compare."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import MisfitError, Positive, PositiveFloat, Section

#: Why the other estimator is refused, by place: see `posttrain.objectives.reference_kl`.
_ESTIMATORS: dict[str, tuple[Literal["k1", "k3"], str]] = {
    "loss": ("k3", "the expected gradient of k1 in the loss is zero: it would hold the policy nowhere"),
    "reward": ("k1", "near the reference the expected gradient of k3 in the reward vanishes"),
}


class ReferenceKl(Section):
    """A penalty on how far the policy is from the stage's start (arXiv 2402.03300; 2512.21852 for its forms).

    The reference is a frozen copy of the weights that the stage starts from, sharded as the policy is; with
    `lora` it is the same weights without their adapters, and takes no memory.
    """

    coefficient: PositiveFloat = Field(
        description="Factor of the penalty. In the loss it is TRL's `beta`; in the reward it is in units of "
        "the advantage."
    )
    place: Literal["loss", "reward"] = Field(
        default="loss",
        description="Where the penalty is. `loss`: the estimate of each token is added to the loss, as in "
        "GRPO's paper. `reward`: it is taken from each token's advantage, which gives the gradient of "
        "KL(policy ‖ reference) itself.",
    )
    estimator: Literal["k1", "k3"] | None = Field(
        default=None,
        description="Estimate of the divergence at a sampled token, r being reference over policy: k1 is "
        "−log r, k3 is r − 1 − log r. If absent, the one with a gradient: k3 in the loss, k1 in the reward.",
    )

    @model_validator(mode="after")
    def _check(self) -> "ReferenceKl":
        right, reason = _ESTIMATORS[self.place]
        if self.estimator not in (None, right):
            raise MisfitError(
                "estimator", f"{reason} (arXiv 2512.21852)", f"write {right}, or another `place`"
            )
        return self


class _Algorithm(Section):
    """The settings that all objectives have."""

    group_size: int = Field(
        default=16, ge=2, description="Episodes of each prompt; their mean is the baseline."
    )
    mini_batches: Positive = Field(default=2, description="Optimiser steps on each rollout batch.")
    importance_cap: PositiveFloat = Field(
        default=2.0, ge=1, description="Cap on a token's importance weight between engine and learner."
    )
    baseline: Literal["mean", "leave_one_out"] = Field(
        default="mean",
        description="What an episode's reward is compared with: the mean of its group, or the mean of the "
        "others in it (RLOO, arXiv 2402.14740).",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group",
        description="What advantages are divided by: the standard deviation of the group's rewards, that of "
        "the whole rollout batch's, or nothing (Dr. GRPO, arXiv 2503.20783), so that a group counts the more "
        "the more its rewards differ.",
    )
    loss_normalization: Literal["sequence", "token", "constant"] = Field(
        default="sequence",
        description="How a mini-batch's tokens are averaged. `sequence`: every episode counts the same. "
        "`token`: every token does (DAPO, arXiv 2503.14476). `constant`: as token, but divided by the most "
        "tokens that the episodes may have (Dr. GRPO, arXiv 2503.20783).",
    )
    mask_truncated: bool = Field(
        default=False,
        description="Whether episodes that were cut at a length or turn limit are left out of the loss "
        "(DAPO, arXiv 2503.14476). Their rewards still count in their group's baseline. To punish them "
        "instead, add the reward `overlong` or `truncation`.",
    )
    unsolved_bonuses: bool = Field(
        default=False,
        description="Whether bonuses teach in groups that nobody solved: whose first reward, the outcome, is "
        "the same for all and not above 0. What the other rewards add is then the whole difference, and "
        "would count as much as right against wrong. Penalties always teach.",
    )
    kl: ReferenceKl | None = Field(
        default=None, description="Penalty on the distance to the stage's start; none if absent."
    )

    @model_validator(mode="after")
    def _check_baseline(self) -> "_Algorithm":
        if self.baseline == "leave_one_out" and self.scale_rewards == "group":
            raise MisfitError(
                "baseline",
                "divided by the group's deviation it differs from the mean by a constant factor alone",
                "add scale_rewards: none, or remove it",
            )
        return self


class Sapo(_Algorithm):
    """Soft gates in place of clipping (arXiv 2511.20347)."""

    name: Literal["sapo"] = Field(description="Name of the objective.")
    tau_pos: PositiveFloat = Field(default=1.0, description="Sharpness of the gate on positive advantages.")
    tau_neg: PositiveFloat = Field(default=1.05, description="Sharpness of the gate on negative advantages.")


class _Clipped(_Algorithm):
    """What objectives with clipped ratios have in common."""

    clip_low: PositiveFloat = Field(default=0.2, lt=1, description="Ratios are clipped below 1 - clip_low.")
    clip_high: PositiveFloat = Field(default=0.2, description="Ratios are clipped above 1 + clip_high.")
    dual_clip: PositiveFloat | None = Field(
        default=None,
        description="Ratio above which tokens of negative advantage are clipped as well (arXiv 1912.09729); "
        "above 1 + clip_high, such as 3. If absent they never are.",
    )

    @model_validator(mode="after")
    def _check_dual_clip(self) -> "_Clipped":
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise MisfitError(
                "dual_clip",
                f"{self.dual_clip:g} is within the bounds of every other token, 1 + clip_high = "
                f"{1 + self.clip_high:g}",
                "raise it: 3 is usual",
            )
        return self


class Grpo(_Clipped):
    """Clipping of each token's ratio (arXiv 2402.03300)."""

    name: Literal["grpo"] = Field(description="Name of the objective.")


class Gspo(_Clipped):
    """Clipping of each sequence's ratio (arXiv 2507.18071)."""

    name: Literal["gspo"] = Field(description="Name of the objective.")
    clip_low: PositiveFloat = Field(default=3e-4, lt=1, description="Ratios are clipped below 1 - clip_low.")
    clip_high: PositiveFloat = Field(default=4e-4, description="Ratios are clipped above 1 + clip_high.")

    @model_validator(mode="after")
    def _check_normalization(self) -> "Gspo":
        if self.loss_normalization != "sequence":
            raise MisfitError(
                "loss_normalization",
                "gspo weighs sequences, and long ones would count more than their ratio says",
                "remove it, or use grpo",
            )
        return self


class Cispo(_Algorithm):
    """Bounded weights of the tokens' gradients in place of clipping (arXiv 2506.13585)."""

    name: Literal["cispo"] = Field(description="Name of the objective.")
    clip_high: PositiveFloat = Field(
        default=4.0,
        description="A token's weight, its ratio, is cut above 1 + clip_high: TRL's epsilon_high, that is.",
    )
    loss_normalization: Literal["sequence", "token", "constant"] = Field(
        default="token",
        description="As in the other objectives; the mean over tokens is that of CISPO's paper.",
    )


AlgorithmConfig = Annotated[Sapo | Grpo | Gspo | Cispo, Field(discriminator="name")]
