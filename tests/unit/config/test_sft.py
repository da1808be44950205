"""The `sft` stage: packing and what it excludes."""

from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.config import SftStage


def stage(**keys: Any) -> SftStage:
    data = {"mixture": {"zoom": 1.0}, "packing": True}
    return SftStage.model_validate({"stage": "sft", "max_steps": 1, "data": data} | keys)


def test_a_worker_takes_per_device_batch_size_samples_a_step() -> None:
    assert stage(per_device_batch_size=8, num_workers=4).global_batch_size == 32


def test_accumulation_is_left_to_packing() -> None:
    with pytest.raises(ValidationError, match=r"leave it out, and write per_device_batch_size: 12"):
        stage(per_device_batch_size=3, gradient_accumulation_steps=4)
    stage(data={"mixture": {"zoom": 1.0}}, gradient_accumulation_steps=4)


CURRICULUM = {"short_length": 1000, "short_phase": 0.25, "long_share": 0.5}


def test_a_curriculum_begins_its_second_phase_with_a_step() -> None:
    data = {"mixture": {"zoom": 1.0}, "max_length": 8000, "curriculum": CURRICULUM}
    assert stage(data=data, max_steps=10, per_device_batch_size=8).long_samples_from(rows=0) == 2 * 8
    epochs = {"max_steps": None, "num_train_epochs": 2.0}
    assert stage(data=data, per_device_batch_size=8, **epochs).long_samples_from(rows=160) == 10 * 8
    with pytest.raises(ValidationError, match="no sample is longer than 1000 and fits max_length = 1000"):
        stage(data=data | {"max_length": 1000})
