"""Kernels that need a GPU, as far as a CPU can stand in for them."""

import pytest
from transformers import modeling_flash_attention_utils as flash_utils

from tests.unit.models.reference_flash import Flash


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    """Let transformers find FlashAttention 2, and these functions in it."""
    made = Flash()
    functions = (
        made.flash_attn_func,
        made.flash_attn_varlen_func,
        None,
        flash_utils._pad_input,
        flash_utils._unpad_input,
    )
    two = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(two, "general_availability_check", lambda *args, **kwargs: True)
    monkeypatch.setitem(two, "supported_devices", ((lambda: True, "cpu"),))
    monkeypatch.setattr(flash_utils, "_lazy_imports", lambda *args, **kwargs: functions)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(flash_utils, name, None)
    return made
