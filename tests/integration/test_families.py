"""Every family from a new tiny model to an answer: SFT, packed SFT, DPO with LoRA, export, who loads it."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from posttrain.cli.chat import Chat
from posttrain.config import EngineConfig, RunConfig
from posttrain.data.formats import write_canonical
from posttrain.inference.engine import AdapterSlots, EngineUse, Request
from posttrain.inference.images import engine_images
from posttrain.media.images import save_image
from posttrain.models.export import export
from posttrain.models.lora import base_of, is_adapter
from posttrain.quickstart import marker_scenes
from posttrain.quickstart.tiny import TINY_TYPES, build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.run.directory import RunDir
from posttrain.training.run_at_work import standalone
from posttrain.types import Block, ImageRef, Message, Sample, text_message
from tests.stage_jobs import job_of, worker_of

STEPS = 5
#: Two or three dialogues of this task.
ROW = 300
SAMPLED = 16
#: Largest gap allowed between an engine's log-probs and transformers' on a CPU in float32.
TOLERANCE = 1e-4


@dataclass
class Trained:
    """What came of a family's stages.

    Attributes:
        start: The tiny model before them.
        run: The run's directory.
        adapter: The final checkpoint, of adapters.
        exported: The same as a model that stands alone.
        renderer: Of the exported model.
    """

    start: Path
    run: Path
    adapter: Path
    exported: Path
    renderer: Renderer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues with one and two images, and pairs whose answers have letters of either half."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "pairs").mkdir()
    pairs = []
    for index, scene in enumerate(itertools.islice(marker_scenes.scene_stream("train", 3), 8)):
        image = Block("image", image=save_image(scene.draw(), folder / "pairs"))
        asked = Message("user", (image, Block("text", text="Which letter is on the red marker?")))
        chosen, rejected = text_message("assistant", "ABC"[: 1 + index % 3]), text_message("assistant", "XYZ")
        pairs.append(Sample(f"p{index}", (asked,), chosen=(chosen,), rejected=(rejected,)))
    write_canonical(pairs, folder / "pairs" / "data.jsonl")
    sources: dict[str, Any] = {"pairs": {"path": "../pairs/data.jsonl"}}
    for kind in ("zoom", "list"):
        params = {"kind": kind, "split": "sft", "count": 8}
        sources[kind] = {"generator": "marker_scenes", "params": params}
    (folder / "datasets_cfg").mkdir()
    for name, source in sources.items():
        dataset = {"name": name, "description": "Scenes.", "licence": "CC0-1.0", "source": source}
        (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset))
    return folder


def run_stages(start: Path, folder: Path, output: Path) -> tuple[Path, Path]:
    """Run the three stages; returns the run's directory and the final checkpoint."""
    loop = {"max_steps": STEPS, "per_device_batch_size": 4, "logging_steps": 1, "learning_rate": 2e-3}
    dialogues: dict[str, Any] = {"mixture": {"zoom": 0.5, "list": 0.5}}
    config = RunConfig.model_validate(
        {
            "name": "family",
            "output_dir": str(output),
            "base_dir": str(folder),
            "model": {"name_or_path": str(start), "dtype": "float32"},
            "trackers": [],
            "stages": [
                {"stage": "sft", "data": dialogues, **loop},
                {
                    "stage": "sft",
                    "name": "packed",
                    "data": dialogues | {"packing": True, "max_length": ROW},
                    **loop,
                },
                {"stage": "dpo", "data": {"mixture": {"pairs": 1.0}}, "lora": {"rank": 4}, **loop},
            ],
        }
    )
    run, checkpoint = RunDir.create(config, resume=False), start
    final = None
    for place, stage in enumerate(config.stages):
        worker_of(stage)(job_of(config, run, checkpoint, place))
        final = run.newest_checkpoint(stage.name)
        assert final is not None
        checkpoint = standalone(final, final.parent / "merged" / final.name)
    assert final is not None
    return run.path, final


@pytest.fixture(scope="module", params=TINY_TYPES)
def trained(request: pytest.FixtureRequest, folder: Path, tmp_path_factory) -> Trained:
    output = tmp_path_factory.mktemp(request.param)
    start, exported = output / "tiny", output / "exported"
    build_tiny(request.param, start, seed=0)
    run, adapter = run_stages(start, folder, output / "runs")
    export(adapter, exported)
    family = request.param.removesuffix("_moe")
    return Trained(start, run, adapter, exported, Renderer.from_pretrained(exported, family))


@pytest.fixture(scope="module")
def scenes(folder: Path) -> list[ImageRef]:
    stream = itertools.islice(marker_scenes.scene_stream("test", 5), 3)
    return [save_image(scene.draw(), folder / "pairs") for scene in stream]


@pytest.fixture(scope="module")
def prompts(trained: Trained, scenes: list[ImageRef]) -> list[Rendered]:
    """Dialogues with one to three images in two turns, and one without."""
    images = [Block("image", image=scene) for scene in scenes]
    text = Block("text", text="Which letter is on the red marker?")
    dialogues = [
        [
            Message("user", (*images[:count], text)),
            text_message("assistant", "A"),
            Message("user", (*images[count:], Block("text", text="And on the blue one?"))),
        ]
        for count in (1, 2, 3)
    ]
    dialogues.append([Message("user", (text,))])
    return [trained.renderer.render(each, add_generation_prompt=True) for each in dialogues]


@torch.no_grad()
def logits(model: Any, items: Sequence[Any], renderer: Renderer) -> torch.Tensor:
    return model.eval()(**collate(items, renderer)).logits


def model_at(path: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(path, dtype="float32")


def with_adapter(trained: Trained) -> PeftModel:
    """What PEFT makes of the final checkpoint as it is."""
    return PeftModel.from_pretrained(model_at(Path(base_of(trained.adapter))), str(trained.adapter))


def test_every_stage_learns(trained: Trained) -> None:
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    for stage in ("sft", "packed", "dpo"):
        losses = [row["loss"] for row in rows if row["stage"] == stage]
        assert len(losses) == STEPS
        assert losses[-1] < 0.9 * losses[0], stage
    margins = [row["rewards/margins"] for row in rows if row["stage"] == "dpo"]
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert margins[-1] > 0.1


def test_the_checkpoint_is_what_peft_and_transformers_load(trained: Trained, prompts: list[Rendered]) -> None:
    assert is_adapter(trained.adapter)
    assert AutoProcessor.from_pretrained(trained.exported).chat_template
    alone = logits(model_at(trained.exported), prompts, trained.renderer)
    adapted = logits(with_adapter(trained), prompts, trained.renderer)
    torch.testing.assert_close(alone, adapted, rtol=1e-4, atol=1e-4)
    before = logits(model_at(Path(base_of(trained.adapter))), prompts, trained.renderer)
    assert (alone - before).abs().max() > 0.05, "the adapters must matter"


def test_it_answers(trained: Trained, scenes: list[ImageRef]) -> None:
    said: list[str] = []
    chat = Chat(trained.exported, said.append, max_new_tokens=4)
    answer = chat.ask("Which letter is on the red marker?", Path(scenes[0].path))
    assert answer
    assert "".join(said) == answer + "\n"
    assert "Made from" in (trained.exported / "README.md").read_text()


@torch.no_grad()
def largest_gap(model: Any, prompts: list[Rendered], sampled: list[Any], renderer: Renderer) -> float:
    """Between an engine's log-probs and a transformers model's, over all sampled tokens."""
    items = []
    for number, ids, _ in sampled:
        items.append(replace(prompts[number], token_ids=prompts[number].token_ids + ids))
    logprobs = logits(model, items, renderer).log_softmax(-1)
    gap = 0.0
    for row, (item, (_, ids, found)) in enumerate(zip(items, sampled, strict=True)):
        at = torch.arange(len(item.token_ids) - len(ids), len(item.token_ids))
        expected = logprobs[row, at - 1, torch.tensor(ids)]
        gap = max(gap, (expected - torch.tensor(found)).abs().max().item())
    return gap


@pytest.fixture
def vllm_samples(
    trained: Trained, prompts: list[Rendered], soak: bool, tmp_path: Path
) -> Callable[..., list[Any]]:
    """Has vLLM sample after the prompts, in a process of its own: no MoE starts where a dense model did."""
    if not soak:
        pytest.skip("starting an engine takes half a minute: --soak")
    renderer = trained.renderer
    images = [engine_images(prompt.images, renderer) for prompt in prompts]
    asked = [(prompt.token_ids, shown) for prompt, shown in zip(prompts, images, strict=True)]
    torch.save((asked, renderer.end_token_id, renderer.banned_token_ids), tmp_path / "asked.pt")

    def run(checkpoint: Path, *adapter: Path) -> list[Any]:
        subprocess.run([sys.executable, __file__, tmp_path, checkpoint, *adapter], check=True)
        return json.loads((tmp_path / "sampled.json").read_text())

    return run


def test_vllm_agrees_on_the_exported_model(
    trained: Trained, prompts: list[Rendered], vllm_samples: Callable[..., list[Any]]
) -> None:
    sampled = vllm_samples(trained.exported)
    gap = largest_gap(model_at(trained.exported), prompts, sampled, trained.renderer)
    print(f"{trained.start.parent.name}: {gap:.2g}")
    assert gap < TOLERANCE
    assert largest_gap(model_at(trained.start), prompts, sampled, trained.renderer) > 0.01


def test_vllm_agrees_on_the_adapters_as_they_are(
    trained: Trained, prompts: list[Rendered], vllm_samples: Callable[..., list[Any]]
) -> None:
    if trained.start.parent.name.startswith("qwen3_vl_moe") and not torch.cuda.is_available():
        pytest.skip("vLLM's LoRA around experts is a kernel for GPUs")
    base = Path(base_of(trained.adapter))
    sampled = vllm_samples(base, trained.adapter)
    gap = largest_gap(with_adapter(trained), prompts, sampled, trained.renderer)
    print(f"{trained.start.parent.name} with adapters: {gap:.2g}")
    assert gap < TOLERANCE
    assert largest_gap(model_at(base), prompts, sampled, trained.renderer) > 0.01


def sample(folder: Path, checkpoint: Path, adapter: Path | None = None) -> None:
    """Three samples of each prompt of `asked.pt`, by our engine, which puts the adapters on by itself."""
    from posttrain.inference.vllm_engine import VllmEngine  # noqa: PLC0415 (loads for seconds)

    asked, end_token_id, banned = torch.load(folder / "asked.pt", weights_only=False)
    config = EngineConfig(kv_cache_gb=0.25, max_num_seqs=16)
    slots = None if adapter is None else AdapterSlots(rank=8, resident=1)
    engine: Any = VllmEngine(
        checkpoint,
        end_token_id,
        banned,
        max_length=512,
        dtype="float32",
        config=config,
        use=EngineUse(adapters=slots),
    )
    if adapter is not None:
        engine.load_adapter(adapter, 1)
    for number, (ids, images) in enumerate(asked):
        for seed in range(3):
            name = f"{number}-{seed}"
            request = Request(
                id=name, token_ids=ids, images=images, max_tokens=SAMPLED, temperature=1.0, seed=seed
            )
            engine.submit(request)
    done = []
    while engine.busy:
        done += engine.step()
    found = [(int(each.id.partition("-")[0]), each.token_ids, each.logprobs) for each in done]
    (folder / "sampled.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sample(*map(Path, sys.argv[1:]))
