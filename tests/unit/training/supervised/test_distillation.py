"""Learning from a teacher's log-probs on the tiny real model: its definition, and what must not change it."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from posttrain.config import DatasetConfig, DistillationStage, RunConfig, SourceConfig
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset as Samples
from posttrain.data.formats import write_canonical
from posttrain.data.mixing import Mixture
from posttrain.inference.engine import TopTokens
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.objectives.sft import EXPONENTS
from posttrain.quickstart import marker_scenes
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import KL_TEACHER
from posttrain.training.supervised.answer_log import AnswerLine, AnswerLog, read_top_tokens
from posttrain.training.supervised.distillation import (
    DistillationTrainer,
    TaughtDraws,
    distillation_worker,
    with_language_model_alone,
)
from posttrain.training.supervised.sft import sft_batches, training_arguments
from posttrain.training.supervised.stage_parts import StageParts
from posttrain.training.supervised.teacher_answers import COLUMN
from posttrain.types import Block, Message, Sample, text_message
from tests.stage_jobs import job_of
from tests.unit.training.supervised import test_sft
from tests.unit.training.supervised.test_sft import assert_same, config_of, float64_rotation, in_float64, step

__all__ = ["float64_rotation"]  # a fixture

SAMPLES, TOP_K, WEIGHT = 8, 5, 0.3


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture(scope="module")
def answers(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of one to nine random tokens to prompts with and without an image, and random log-probs."""
    folder = tmp_path_factory.mktemp("answers")
    vocabulary = len(renderer.tokenizer)
    generator = torch.Generator().manual_seed(0)
    lines, tops, samples = [], [], []
    scenes = itertools.islice(marker_scenes.scene_stream("train", 7), SAMPLES)
    for index, scene in enumerate(scenes):
        image = (Block("image", image=save_image(scene.draw(), folder)),) if index % 2 else ()
        prompt = Message("user", (*image, Block("text", text="Which letter is it? " * (index % 3 + 1))))
        # Tokens that no text would be cut into.
        tokens = [*torch.randint(5, 200, (index + 1,), generator=generator).tolist(), renderer.end_token_id]
        logprobs, ids = torch.randn(len(tokens), vocabulary, generator=generator).log_softmax(1).topk(TOP_K)
        lines.append(AnswerLine(index, "?", tuple(tokens)))
        tops.append(TopTokens(ids.int().numpy(), logprobs.numpy()))
        samples.append(Sample(f"s{index}", (prompt, text_message("assistant", "?"))))
    log = AnswerLog(folder)
    log.append(lines, tops)
    about = [log.read(index) for index in range(SAMPLES)]
    log.close()
    for sample, line in zip(samples, about, strict=True):
        sample.columns[COLUMN] = line.sampled()
    write_canonical(samples, folder / "data.jsonl")
    return folder


def stage_of(packing: bool = False, **keys: Any) -> DistillationStage:
    data = {"mixture": {"taught": 1.0}} | ({"packing": True, "max_length": 200} if packing else {})
    loss = {"top_k": TOP_K, "top_k_weight": WEIGHT} | keys.pop("loss", {})
    teacher = {"checkpoint": "Qwen/Qwen3-VL-8B-Instruct"}
    given = {"stage": "distillation", "max_steps": 1, "teacher": teacher, "data": data, "loss": loss}
    return DistillationStage.model_validate(given | {"generation": {"max_new_tokens": 64}} | keys)


class Setup(test_sft.Setup):
    """The same of a stage whose teacher's answers and log-probs are there."""

    def __init__(self, checkpoint: Path, answers: Path, scratch: Path, stage: DistillationStage) -> None:
        self.stage = stage
        config = config_of(checkpoint, stage)
        renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
        model: Any = in_float64(load_model(checkpoint, dtype="float32"))
        self.samples = Samples(check_rows(answers / "data.jsonl"))
        mixture = Mixture({"taught": self.samples}, {"taught": 1.0}, seed=0)
        parts = StageParts(renderer, model, mixture, 1, None)
        vocabulary = model.config.get_text_config().vocab_size
        self.collator, self.draws = sft_batches(
            stage, parts, SAMPLES, lambda *given: TaughtDraws(*given, vocabulary=vocabulary)
        )
        add_supervised_head(model)
        if stage.data.packing:
            use_packed_attention(model)
        self.trainer: Any = DistillationTrainer(
            run=RunDir(scratch),
            stage=stage,
            model=model,
            args=training_arguments(config, stage, scratch, steps=1),
            data_collator=self.collator,
            train_dataset=Dataset.from_dict({"draw": range(SAMPLES)}),
            processing_class=renderer.processor,
        )


def by_definition(setup: Setup, renderer: Renderer, answers: Path) -> float:
    """The loss from all logits of each sample by itself, the prompt rendered and the answer as sampled."""
    power = EXPONENTS[setup.stage.loss.normalization]
    model = setup.trainer.model
    numerator = denominator = 0.0
    for index in range(SAMPLES):
        sample = setup.samples[index]
        about = sample.columns[COLUMN]
        tokens = about["token_ids"]
        item = renderer.render(sample.messages[:1], add_generation_prompt=True)
        length = len(item.token_ids)
        item.token_ids += tokens
        (share,) = [setup.collator([{"draw": d}]) for d in range(SAMPLES) if _row(setup, d) == index]
        batch = share["micro_batches"][0]()
        assert batch["input_ids"][0].tolist() == item.token_ids
        found = {k: v for k, v in batch.items() if k not in ("labels", "candidates", "teacher_logprobs")}
        with torch.no_grad():
            logs = model(**found).logits[0, length - 1 : -1].log_softmax(-1)
        top = read_top_tokens(answers, about["shard"], about["start"], len(tokens))
        total = 0.0
        for place, token in enumerate(tokens):
            q = [math.exp(value) for value in top.logprobs[place].tolist()]
            p = [logs[place, other].exp().item() for other in top.ids[place].tolist()]
            pairs = [*zip(q, p, strict=True), (1 - math.fsum(q), 1 - math.fsum(p))]
            kl = math.fsum(a * math.log(a / b) for a, b in pairs)
            total += (1 - WEIGHT) * -logs[place, token].item() + WEIGHT * kl
        numerator += total / len(tokens) ** power
        denominator += len(tokens) ** (1 - power)
    return numerator / denominator


def _row(setup: Setup, draw: int) -> int:
    return setup.collator._draws._mixture.index(draw)[1]  # type: ignore[union-attr]


def test_the_loss_is_its_definition_however_it_is_cut(
    tiny_checkpoint: Path, renderer: Renderer, answers: Path, tmp_path: Path
) -> None:
    loss = {"normalization": "sqrt"}
    eight = Setup(
        tiny_checkpoint, answers, tmp_path, stage_of(gradient_accumulation_steps=SAMPLES, loss=loss)
    )
    expected = by_definition(eight, renderer, answers)
    found = step(eight)
    assert found[0] == pytest.approx(expected, rel=1e-7)  # the stored log-probs are float32
    assert sum(gradient.norm().item() for gradient in found[1].values()) > 1
    whole = stage_of(per_device_batch_size=SAMPLES, loss=loss)
    assert_same(step(Setup(tiny_checkpoint, answers, tmp_path, whole)), found)
    packed = Setup(
        tiny_checkpoint, answers, tmp_path, stage_of(True, per_device_batch_size=SAMPLES, loss=loss)
    )
    assert len(packed.shares()[0]["micro_batches"]) > 1
    assert_same(step(packed), found)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_stage_resumes_where_it_was_and_trains_the_language_model_alone(
    tiny_checkpoint: Path, answers: Path, tmp_path: Path, lora: dict | None
) -> None:
    """Four steps at once, and the last two again from the checkpoint in the middle: the same weights."""
    loop = {"max_steps": 4, "save_steps": 2, "per_device_batch_size": 4, "learning_rate": 1e-3, "lora": lora}
    stage = stage_of(True, text_only=True, logging_steps=1, **loop)
    config = RunConfig.model_validate(
        {
            "name": "taught",
            "output_dir": str(tmp_path / "runs"),
            "base_dir": str(tmp_path),
            "model": {"name_or_path": str(tiny_checkpoint), "dtype": "float32"},
            "stages": [stage.model_dump(exclude_unset=True)],
            "trackers": [],
        }
    )
    run = RunDir.create(config, resume=False)
    # Rows without images, as `taught_datasets` would see to.
    lines = [line for line in (answers / "data.jsonl").read_text().splitlines() if '"image"' not in line]
    (answers / "words.jsonl").write_text("\n".join(lines) + "\n")
    taught = DatasetConfig(
        name="taught",
        description="Words.",
        licence="CC0-1.0",
        source=SourceConfig(path=str(answers / "words.jsonl")),
    )
    replaced = {"taught": taught}
    distillation_worker(job_of(config, run, tiny_checkpoint, replaced=replaced))
    newest = run.newest_checkpoint("distillation")
    assert newest is not None
    assert newest.name == "checkpoint-4"
    weights = "model.safetensors" if lora is None else "adapter_model.safetensors"
    first = load_file(newest / weights)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1][KL_TEACHER] < rows[0][KL_TEACHER]
    shutil.rmtree(newest)
    distillation_worker(job_of(config, run, tiny_checkpoint, replaced=replaced))
    again = load_file(newest / weights)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    if lora is not None:
        return
    start = load_file(tiny_checkpoint / "model.safetensors")
    changed = {name for name, tensor in first.items() if not torch.equal(start[name], tensor)}
    assert any("language_model" in name for name in changed)
    assert not any("visual" in name for name in changed)
    # What gets no gradient would make ranks wait for it.
    model = with_language_model_alone(config, tiny_checkpoint).model
    assert (model.freeze_vision_tower, model.freeze_merger) == (True, True)


def test_tokens_beyond_the_students_vocabulary_count_among_the_rest(
    renderer: Renderer, answers: Path
) -> None:
    samples = Samples(check_rows(answers / "data.jsonl"))
    mixture = Mixture({"taught": samples}, {"taught": 1.0}, seed=0)
    full, small = (TaughtDraws(mixture, renderer, 999, 8, vocabulary=size) for size in (10_000, 100))
    items = [full._show("taught", samples[index]) for index in range(3)]
    all_of_them, some = full.targets(items), small.targets(items)
    unknown = all_of_them["candidates"] >= 100
    assert unknown.any()
    assert (some["teacher_logprobs"][unknown] == -math.inf).all()
    assert torch.equal(some["candidates"][~unknown], all_of_them["candidates"][~unknown])
    assert all_of_them["candidates"].shape == (sum(item.count for item in items), TOP_K)
