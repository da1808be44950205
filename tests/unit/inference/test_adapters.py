"""An adapter survives its way through memory, and nothing of it stays on the disk."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from posttrain.config.lora import LoraConfig
from posttrain.inference.adapters import AdapterFiles
from posttrain.inference.worker import InferenceWorker
from posttrain.models.load import load_model
from posttrain.models.lora import with_lora
from posttrain.rendering.rendering import Renderer
from posttrain.training.core.whole_weights import adapter_tensors
from tests.unit.rollout.scripted_engine import ScriptedEngine


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


def test_a_worker_loads_the_base_of_an_adapter_unless_it_serves_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    loaded: list[tuple[str, Path]] = []

    class Engine(ScriptedEngine):
        def load_weights(self, path: Path, version: int) -> None:
            loaded.append(("weights", path))

        def load_adapter(self, path: Path, version: int) -> int:
            assert (path / "adapter_model.safetensors").read_bytes() == b"tensors"
            loaded.append(("adapter", path))
            return 1

    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    worker = InferenceWorker()
    engine = Engine(tiny_checkpoint, renderer.end_token_id, renderer.banned_token_ids)
    worker.serve(renderer, lambda: engine, lockstep=False)
    try:
        files = AdapterFiles(b"{}", b"tensors", layers=1)
        for version in (1, 2):
            assert worker.load_adapter(files, tmp_path, version).modules == 1
        worker.load_weights(tiny_checkpoint, 3)
        worker.load_adapter(files, tmp_path, 4)
    finally:
        worker.close()
    assert [kind for kind, _ in loaded] == ["weights", "adapter", "adapter", "weights", "weights", "adapter"]
    assert [path for kind, path in loaded if kind == "weights"] == [tmp_path, tiny_checkpoint, tmp_path]
