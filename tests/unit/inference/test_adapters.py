"""An adapter survives its way through memory, and nothing of it stays on the disk."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from posttrain.config.lora import LoraConfig
from posttrain.inference.adapters import AdapterFiles
from posttrain.models.load import load_model
from posttrain.models.lora import with_lora
from posttrain.training.core.whole_weights import adapter_tensors


def test_peft_loads_what_was_sent(tiny_checkpoint: Path) -> None:
    sent = with_lora(load_model(tiny_checkpoint, dtype="float32"), LoraConfig(rank=3), seed=1)
    for name, parameter in sent.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    files = AdapterFiles.of(sent.peft_config["default"], adapter_tensors(sent))
    with files.on_disk() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        base: Any = load_model(tiny_checkpoint, dtype="float32")
        loaded = PeftModel.from_pretrained(base, str(folder))
    assert not folder.exists()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, sent(input_ids=ids).logits)
    adapted = {name for name, _ in loaded.named_parameters() if "lora_B" in name}
    assert files.layers == len(adapted) > 0
