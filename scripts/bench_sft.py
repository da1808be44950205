"""Supervised fine-tuning with packing against TRL's SFTTrainer, on the same dialogues with images.

    python scripts/bench_sft.py                    about three minutes on 2 cores
    python scripts/bench_sft.py --check --json bench.json

Both train the same tiny Qwen3-VL with a frozen vision tower on the same dialogues of mixed length, two thirds
of them with images, each seen once, in a process of its own; rounds alternate. TRL has the best settings
that it takes for vision data: no gradient checkpointing, labels on the answers only, no truncation, the same
batch. It refuses packing and padding-free batches there. `trl_sorted` may sort the samples by length as well
(`group_by_length`), which removes most of the padding at the price of batches that are no longer random.

Measured, each with its goal:
    speed    supervised tokens a second over those of `trl`: at least 2.
    memory   peak resident memory over that of `trl`, of whole processes: at most 1.
Shown besides: speed over `trl_sorted`, and which share of TRL's positions is padding.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
from datasets import Dataset
from PIL import Image
from tqdm import tqdm
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from posttrain.config import RunConfig, SftStage
from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset as Samples
from posttrain.data.mixing import Mixture
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import add_supervised_head
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.training.supervised.sft import SupervisedTrainer, sft_batches, training_arguments
from posttrain.training.supervised.stage_parts import StageParts

BATCH, MAX_LENGTH = 16, 2048
SIDES = ("trl", "ours", "trl_sorted")
GOALS = {"speed_ratio": (">=", 2.0), "memory_ratio": ("<=", 1.0)}


def write_dialogues(folder: Path, count: int) -> None:
    """Dialogues of one turn: a third text only, the others with one to three images; log-normal lengths."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    lines = []
    for index in range(count):
        images = []
        for _ in range(rng.choice((0, 1, 1, 2, 3, 0))):
            height, width = (16 * rng.randint(4, 10) for _ in range(2))
            pixels = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            images.append(save_image(Image.fromarray(pixels), folder / "images").path)
        asked, answered = (min(900, int(rng.lognormvariate(4.5, 0.9)) + 8) for _ in range(2))
        text = "".join(rng.choice("abcdefgh ") for _ in range(asked))
        answer = "".join(rng.choice("abcdefgh ") for _ in range(answered)).strip()
        shown = [{"type": "image", "image": path} for path in images]
        content = [*shown, {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"id": f"s{index}", "messages": turns}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


class Counting:
    """A collator that counts supervised tokens and positions of each batch."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.supervised: list[int] = []
        self.padding: list[float] = []

    def __call__(self, rows: Any) -> Any:
        """Collate, and count."""
        batch = self.collator(rows)
        if "micro_batches" in batch:
            self.supervised.append(int(batch["supervised"].sum()))
            self.padding.append(0.0)
        else:
            self.supervised.append(int((batch["labels"] != -100).sum()))
            self.padding.append(1 - batch["attention_mask"].float().mean().item())
        return batch


def our_trainer(folder: Path, stage: SftStage, renderer: Renderer, model: Any, steps: int) -> Any:
    """The trainer of the `sft` stage."""
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "model": {"name_or_path": str(folder), "dtype": "float32"},
            "stages": [stage.model_dump(exclude_unset=True)],
        }
    )
    mixture = Mixture({"bench": Samples(check_rows(folder / "data.jsonl"))}, {"bench": 1.0}, seed=0)
    parts = StageParts(renderer, model, mixture, steps, None)
    batches, draws = sft_batches(stage, parts, steps * BATCH)
    add_supervised_head(model)
    use_packed_attention(model)
    return SupervisedTrainer(
        run=RunDir(folder / "ours"),
        stage=stage,
        model=model,
        args=training_arguments(config, stage, folder / "ours", steps),
        data_collator=batches,
        train_dataset=draws,
        processing_class=renderer.processor,
    )


def trl_trainer(
    folder: Path, stage: SftStage, renderer: Renderer, model: Any, steps: int, by_length: bool
) -> Any:
    """TRL's own trainer and collator, on the same rows in the same order."""
    samples = Samples(check_rows(folder / "data.jsonl"))
    mixture = Mixture({"bench": samples}, {"bench": 1.0}, seed=0)
    rows = []
    for draw in range(steps * BATCH):
        user, assistant = samples[mixture.index(draw)[1]].messages
        rows.append(
            {
                "prompt": [{"role": "user", "content": user.text}],
                "completion": [{"role": "assistant", "content": assistant.text}],
                "images": [image.path for image in user.images],
                "length": len(renderer.render([user, assistant]).token_ids) if by_length else 0,
            }
        )
    dataset = Dataset.from_list(rows).with_transform(opened)
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=stage.learning_rate,
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length" if by_length else "sequential",
        length_column_name="length",
        remove_unused_columns=False,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
    )
    return SFTTrainer(model=model, args=settings, train_dataset=dataset, processing_class=renderer.processor)


def opened(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Images of a batch of rows, decoded when they are asked for."""
    rows["images"] = [[Image.open(path).convert("RGB") for path in paths] for paths in rows["images"]]
    return rows


def run_side(side: str, folder: Path, steps: int) -> dict[str, float]:
    """Train; what the steps after the first one took."""
    renderer = Renderer.from_pretrained(folder, "qwen3_vl", min_pixels=64**2, max_pixels=160**2)
    model = load_model(folder, dtype="float32")
    stage = SftStage.model_validate(
        {
            "stage": "sft",
            "data": {"mixture": {"bench": 1.0}, "packing": True, "max_length": MAX_LENGTH},
            "loss": {"normalization": "token"},
            "max_steps": steps,
            "per_device_batch_size": BATCH,
            "save_steps": 10_000,
            "logging_steps": 1000,
        }
    )
    if side == "ours":
        trainer = our_trainer(folder, stage, renderer, model, steps)
    else:
        trainer = trl_trainer(folder, stage, renderer, model, steps, by_length=side == "trl_sorted")
    clock, counting = Clock(), Counting(trainer.data_collator)
    trainer.args.save_strategy = "no"
    trainer.data_collator = counting
    trainer.add_callback(clock)
    trainer.train()
    return {
        "tokens_per_s": sum(counting.supervised[1:steps]) / (clock.ends[-1] - clock.ends[0]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "padding": statistics.mean(counting.padding),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure; a side runs in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        build_tiny("qwen3_vl", Path(folder))
        write_dialogues(Path(folder), options.steps * BATCH)
        turns = [side for _ in range(options.rounds) for side in SIDES]
        for side in tqdm(turns, desc="sides", unit="run"):
            command = [sys.executable, __file__, "--steps", str(options.steps), "--side", side, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    figures: dict[str, Any] = {}
    for name, key, other in (
        ("speed_ratio", "tokens_per_s", "trl"),
        ("memory_ratio", "peak_mb", "trl"),
        ("speed_ratio_sorted", "tokens_per_s", "trl_sorted"),
    ):
        ratios = [mine[key] / his[key] for mine, his in zip(found["ours"], found[other], strict=True)]
        figures |= {name: statistics.median(ratios), f"{name}_spread": [min(ratios), max(ratios)]}
    for side in SIDES:
        figures[f"{side}_padding"] = found[side][0]["padding"]
    return figures


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of the sides (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="steps of a run, one to warm up (default: 6)")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side[0], Path(options.side[1]), options.steps)))
        return 0
    return benchmark.report(measure(options), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
