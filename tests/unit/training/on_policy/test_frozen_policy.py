"""A frozen model beside the policy: it stays what it was while the policy is trained."""

from pathlib import Path

import pytest
import torch

from posttrain.config import ModelConfig, RlStage
from posttrain.training.on_policy.frozen_policy import FrozenPolicy
from posttrain.training.on_policy.learner import CPU, Learner
from posttrain.types import Trajectory


def of_engine(trajectories: list[Trajectory]) -> torch.Tensor:
    """The log-probs of a plain pass of transformers with the first weights."""
    pairs = [pair for each in trajectories for pair in zip(each.logprobs, each.sampled, strict=True)]
    return torch.tensor([logprob for logprob, sampled in pairs if sampled])


@pytest.mark.parametrize("lora", [False, True])
def test_a_reference_stays_while_the_policy_learns(
    model_config: ModelConfig,
    stage: RlStage,
    tiny_checkpoint: Path,
    trajectories: list[Trajectory],
    lora: bool,
) -> None:
    update = {"lora": {"rank": 4}, "learning_rate": 0.01} if lora else {}
    settings = RlStage.model_validate(stage.model_dump(exclude_unset=True) | update)
    learner = Learner(model_config, settings, tiny_checkpoint, resume=False)
    if lora:
        frozen = FrozenPolicy.base_of(learner.policy)
    else:
        frozen = FrozenPolicy.load(model_config, settings, tiny_checkpoint, CPU)
    for _ in range(2):
        learner.update(list(trajectories), 0)
        learner.tolerance = 10.0  # the second time the policy is another
    expected = of_engine(trajectories)
    torch.testing.assert_close(frozen.logprobs(trajectories), expected, atol=2e-5, rtol=0)
    learned = torch.tensor([value for each in learner.score(trajectories) for value in each])
    assert (learned - expected).abs().max() > 1e-3


def test_states_and_head_give_the_logprobs(
    model_config: ModelConfig, stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    frozen = FrozenPolicy.load(model_config, stage, tiny_checkpoint, CPU)
    with frozen.states(trajectories) as states:
        logprobs = (states.hidden @ states.head.T).log_softmax(-1)
    pairs = [pair for each in trajectories for pair in zip(each.token_ids, each.sampled, strict=True)]
    ids = torch.tensor([token for token, sampled in pairs if sampled])
    found = logprobs.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found, of_engine(trajectories), atol=2e-5, rtol=0)
