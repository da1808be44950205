"""What makes a float32 learner's arithmetic differ from an engine's is turned off, and only there."""

import os
from pathlib import Path

import pytest
import torch

from posttrain.config import ModelConfig, RlStage
from posttrain.training.core.rendezvous import Rendezvous
from posttrain.training.on_policy.learner_group import LearnerActor


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
def test_float32_is_no_tf32(
    stage: RlStage, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, exact: bool
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    config = ModelConfig.model_validate({"family": "qwen3_vl", "dtype": dtype})
    LearnerActor(0, 1).start(Rendezvous("127.0.0.1", 0), config, stage, tiny_checkpoint, resume=False, seed=0)
    assert torch.backends.cudnn.allow_tf32 is not exact
    assert os.environ["TRITON_F32_DEFAULT"] == ("ieee" if exact else "tf32")
