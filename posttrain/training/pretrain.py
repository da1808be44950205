"""The quickstart's first stage: build a tiny model and teach its vision tower to see.

Throw-away read-outs on every visual token name the marker that covers it (colour), place it (box)
and read it (letter). Colour and letter are read through the token embeddings of their words, so
that what the tower sees already lies where the language model looks for it. Without this stage
the tiny model's reading stays at chance after the time that the stage takes.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from posttrain.config import RunConfig, TinyModelStage
from posttrain.data.dense_views import IGNORED, DenseViews, dense_views
from posttrain.data.marker_scenes import COLOURS, COORDINATE_STEP, LETTERS
from posttrain.data.rendering import Renderer
from posttrain.models.load import load_model, save_model
from posttrain.models.tiny import build_tiny
from posttrain.run_dir import RunDir
from posttrain.tracking import Tracker
from posttrain.training.distributed import rank, sum_gradients, sum_over_ranks, world_size
from posttrain.training.optimizers import build_optimizer

TEST_SCENES = 60
#: Scenes drawn for each step of training; a view is seen about six times at the defaults.
SCENES_PER_STEP = 1.5
WARMUP_STEPS = 50


class DenseReadout(nn.Module):
    """Logits for colour, letter and box of every visual token.

    Args:
        embeddings: The language model's input embeddings [V, D]; not trained here.
        colour_ids: Token ids of the colour words.
        letter_ids: Token ids of the letters.
    """

    colour_words: Tensor
    letter_words: Tensor

    def __init__(self, embeddings: Tensor, colour_ids: list[int], letter_ids: list[int]) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.register_buffer("colour_words", embeddings[colour_ids].detach().clone() / width**0.5)
        self.register_buffer("letter_words", embeddings[letter_ids].detach().clone() / width**0.5)
        self.no_marker = nn.Parameter(torch.zeros(1, width))
        self.box = nn.Linear(width, 4 * (1000 // COORDINATE_STEP + 1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From visual tokens [T, D] to colour [T, C+1], letter [T, L] and box [T, 4, bins] logits."""
        colours = features @ torch.cat((self.colour_words, self.no_marker)).T
        boxes = self.box(features).unflatten(-1, (4, -1))
        return colours, features @ self.letter_words.T, boxes


@dataclass
class LabelledPixels:
    """Views as the vision tower takes them, and the labels of their cells.

    Attributes:
        pixels: [N, patches, values a patch].
        grid_thw: [3] of every view.
        colours: [N, cells].
        letters: [N, cells], IGNORED where illegible.
        boxes: [N, cells, 4], IGNORED where there is no marker.
    """

    pixels: Tensor
    grid_thw: Tensor
    colours: Tensor
    letters: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, views: DenseViews, image_processor: Any) -> "LabelledPixels":
        """Pre-process views with the checkpoint's own image processor."""
        made = image_processor(images=views.images, return_tensors="pt")
        pixels = made["pixel_values"].view(len(views.images), -1, made["pixel_values"].shape[-1])
        labels = (torch.from_numpy(array) for array in (views.colours, views.letters, views.boxes))
        return cls(pixels, made["image_grid_thw"][0], *labels)

    def __getitem__(self, index: Tensor) -> "LabelledPixels":
        rows = (self.colours[index], self.letters[index], self.boxes[index])
        return LabelledPixels(self.pixels[index], self.grid_thw, *rows)


class DenseTrainer:
    """Vision tower and read-outs, trained on labelled views by data-parallel steps."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, stage: TinyModelStage, seed: int) -> None:
        word = renderer.processor.tokenizer.convert_tokens_to_ids
        embeddings: Any = model.get_input_embeddings().weight
        torch.manual_seed(seed)
        self.readout = DenseReadout(embeddings, [word(c) for c in COLOURS], [word(c) for c in LETTERS])
        self.tower: Any = model.base_model.visual
        self.modules = (self.tower, self.readout)
        self.optimizer = build_optimizer(self.modules, "muon", stage.learning_rate, 0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - 0.95 * step / stage.steps)
        )

    def losses(self, batch: LabelledPixels) -> tuple[Tensor, dict[str, float]]:
        """The summed mean losses of the three read-outs, and their accuracies."""
        count, patches, _ = batch.pixels.shape
        grids = batch.grid_thw.expand(count, 3)
        features = self.tower(batch.pixels.reshape(count * patches, -1), grid_thw=grids).pooler_output
        logits = self.readout(features)
        labels = (batch.colours.flatten(), batch.letters.flatten(), batch.boxes.flatten(0, 1))
        loss = torch.zeros(())
        metrics: dict[str, float] = {}
        for name, scores, truth in zip(("colour", "letter", "box"), logits, labels, strict=True):
            flat, target = scores.reshape(-1, scores.shape[-1]), truth.flatten()
            known = target != IGNORED
            loss = loss + cross_entropy(flat[known], target[known])
            distance = (flat.argmax(-1) - target)[known].abs()
            # A box edge counts as found within one coordinate step.
            metrics[f"accuracy/{name}"] = (distance <= (name == "box")).float().mean().item()
        return loss, metrics

    def step(self, batch: LabelledPixels) -> float:
        """One update on this rank's share of a batch; returns its loss."""
        loss, _ = self.losses(batch)
        (loss / world_size()).backward()
        sum_gradients(parameter for module in self.modules for parameter in module.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item()


def pretrain_worker(arguments: dict[str, Any]) -> None:
    """What each worker of the stage runs (see `run_workers`).

    Args:
        arguments: `config` (RunConfig), `stage` (TinyModelStage) and `run` (RunDir).
    """
    config: RunConfig = arguments["config"]
    stage: TinyModelStage = arguments["stage"]
    run: RunDir = arguments["run"]
    scratch = run.scratch(stage.name)
    if rank() == 0:
        build_tiny(stage.model_type, scratch / "initial", config.seed)
    sum_over_ranks(torch.zeros(1))  # nobody loads before rank 0 has written
    renderer = Renderer.from_pretrained(scratch / "initial", stage.family)
    model = load_model(scratch / "initial", dtype="float32", freeze_vision_tower=False)
    trainer = DenseTrainer(model, renderer, stage, config.seed)
    scenes = math.ceil(stage.steps * SCENES_PER_STEP / world_size())
    views = dense_views(scenes, seed=1 + rank() + 1000 * config.seed)
    data = LabelledPixels.of(views, renderer.processor.image_processor)
    draw = torch.Generator().manual_seed(1000 * config.seed + rank())
    tracker = Tracker(run, config.trackers) if rank() == 0 else None
    if tracker is not None:
        tracker.rewind(stage.name, 0)
        tracker.start(stage.name, stage.steps)
    for number in range(1, stage.steps + 1):
        begun = time.perf_counter()
        rows = torch.randint(len(data.pixels), (stage.batch_size // world_size(),), generator=draw)
        loss = trainer.step(data[rows])
        if tracker is not None and (number % stage.logging_steps == 0 or number == stage.steps):
            metrics = {"loss": loss, "time/step": time.perf_counter() - begun}
            tracker.log(stage.name, number, metrics)
    if tracker is not None:
        held_out = LabelledPixels.of(dense_views(TEST_SCENES, seed=0), renderer.processor.image_processor)
        with torch.no_grad():
            _, metrics = trainer.losses(held_out)
        tracker.log(stage.name, stage.steps, metrics)
        tracker.close()
        run.save_checkpoint(stage.name, stage.steps, lambda path: save_model(model, renderer.processor, path))
