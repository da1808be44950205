"""The quickstart's first stage: build a tiny model and teach its vision tower to see.

Read-outs, thrown away afterwards, predict for every visual token the colour, the letter and the box of the
marker that covers it. Colour and letter are read through the token embeddings of their words, so that the
tower's features lie where the language model looks for them. A tiny model that is trained for the same time
without this stage still reads letters at chance.
"""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import StateDict
from transformers import PreTrainedModel

from posttrain.config import TinyModelStage
from posttrain.models.backbone import vision_backbone
from posttrain.models.load import load_model, save_model
from posttrain.models.supervised_head import IGNORED
from posttrain.quickstart.dense_views import DenseViews, dense_views
from posttrain.quickstart.scenes import COLOURS, COORDINATE_STEP, LETTERS
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.processors import ImageProcessor
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import step_of
from posttrain.run.metric_names import ACCURACY, LOSS, TIME_STEP, UPDATE_SKIPPED
from posttrain.run.process import stop_requested
from posttrain.run.tracking import Tracker
from posttrain.training.core.distributed import any_over_ranks, barrier, rank, sum_gradients, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import CHECKPOINTS_KEPT, Updates
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.stage_job import StageJob

#: What a checkpoint keeps for resuming, besides the model.
STATE = Path("state") / "trainer.pt"
#: Scenes on which the trained tower is measured.
TEST_SCENES = 60
#: Scenes drawn for each step of training; with the default batch size each view is used about six times.
SCENES_PER_STEP = 1.5
#: Steps during which the learning rate rises.
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
        """Compute logits of colour [T, C+1], letter [T, L] and box [T, 4, bins] from visual tokens [T, D]."""
        colours = features @ torch.cat((self.colour_words, self.no_marker)).T
        boxes = self.box(features).unflatten(-1, (4, -1))
        return colours, features @ self.letter_words.T, boxes


@dataclass
class LabelledPixels:
    """N views as the vision tower takes them, and the labels of their cells.

    Attributes:
        pixels: [N, patches, values per patch].
        grid_thw: [3] the grid of patches, the same for every view.
        colours: [N, cells] numbers of colours; the last stands for no marker.
        letters: [N, cells] numbers of letters, IGNORED where illegible.
        boxes: [N, cells, 4] steps of the coordinates, IGNORED where there is no marker.
    """

    pixels: Tensor
    grid_thw: Tensor
    colours: Tensor
    letters: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, views: DenseViews, image_processor: ImageProcessor) -> "LabelledPixels":
        """Preprocess views with the checkpoint's own image processor."""
        made = image_processor(images=views.images, return_tensors="pt")
        pixels = made["pixel_values"].view(len(views.images), -1, made["pixel_values"].shape[-1])
        labels = (torch.from_numpy(array) for array in (views.colours, views.letters, views.boxes))
        return cls(pixels, made["image_grid_thw"][0], *labels)

    def __getitem__(self, index: Tensor) -> "LabelledPixels":
        rows = (self.colours[index], self.letters[index], self.boxes[index])
        return LabelledPixels(self.pixels[index], self.grid_thw, *rows)


class TrainerState(TypedDict):
    """The state of a DenseTrainer, as a checkpoint keeps it."""

    readout: dict[str, Tensor]
    optimizer: StateDict
    updates: dict[str, int]


class DenseTrainer:
    """Vision tower and read-outs, trained on labelled views by data-parallel steps.

    Args:
        model: The model whose vision tower is trained.
        renderer: The model's renderer.
        stage: The stage's settings.
        seed: Seed of the read-outs' first weights.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, stage: TinyModelStage, seed: int) -> None:
        word = renderer.processor.tokenizer.convert_tokens_to_ids
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        torch.manual_seed(seed)
        self.readout = DenseReadout(embeddings.weight, [word(c) for c in COLOURS], [word(c) for c in LETTERS])
        self.tower = vision_backbone(model).visual
        self.modules = (self.tower, self.readout)
        self.updates = Updates(
            self.modules,
            build_optimizer(self.modules, "muon", stage.learning_rate, 0.01),
            lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - 0.95 * step / stage.max_steps),
            UpdateGuard(stage.max_skipped_updates, "Lower learning_rate"),
            max_grad_norm=None,
        )

    def losses(self, batch: LabelledPixels) -> tuple[Tensor, dict[str, float]]:
        """Compute the sum of the three read-outs' mean losses, and their accuracies by metric name."""
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
            metrics[ACCURACY + name] = (distance <= (name == "box")).float().mean().item()
        return loss, metrics

    def step(self, batch: LabelledPixels) -> float:
        """Update on this rank's share of a batch, unless that is not finite; return the share's loss."""
        loss, _ = self.losses(batch)
        (loss / world_size()).backward()
        sum_gradients(self.modules)
        self.updates.step(math.isfinite(loss.item()))
        return loss.item()

    def state(self) -> TrainerState:
        """Return everything that resuming needs besides the model."""
        return {
            "readout": self.readout.state_dict(),
            "optimizer": self.updates.optimizer.state_dict(),
            "updates": self.updates.figures(),
        }

    def restore(self, state: TrainerState) -> None:
        """Continue from what `state` returned."""
        self.readout.load_state_dict(state["readout"])
        self.updates.optimizer.load_state_dict(state["optimizer"])
        self.updates.restore(state["updates"])


class DenseStage:
    """One worker's part of the stage, from its beginning or from its newest checkpoint.

    Args:
        job: The stage's work.

    Attributes:
        done: Steps that were done when the worker started.
    """

    def __init__(self, job: StageJob[TinyModelStage]) -> None:
        self.config, self.stage, self.run, resume = job.config, job.stage, job.run, job.resume
        initial = self.run.scratch(self.stage.name) / "initial"
        if rank() == 0 and resume is None:
            build_tiny(self.stage.model_type, initial, self.config.seed)
        barrier()  # nobody loads before rank 0 has written
        start = resume or initial
        self.done = step_of(resume) if resume else 0
        self.renderer = Renderer.from_pretrained(start, self.stage.family)
        self.model = load_model(start, dtype="float32", freeze_vision_tower=False)
        self.trainer = DenseTrainer(self.model, self.renderer, self.stage, self.config.seed)
        if resume is not None:
            self.trainer.restore(torch.load(resume / STATE, weights_only=True))
        self.tracker = Tracker(self.run, self.config.trackers) if rank() == 0 else None
        if self.tracker is not None:
            self.tracker.rewind(self.stage.name, self.done)
            self.tracker.start(self.stage.name, self.stage.max_steps)

    def train(self) -> None:
        """Make the remaining steps, or those until a SIGTERM, and save checkpoints."""
        seed, steps = 1000 * self.config.seed + rank(), self.stage.max_steps
        scenes = math.ceil(steps * SCENES_PER_STEP / world_size())
        views = dense_views(scenes, seed=1 + rank() + 1000 * self.config.seed)
        data = LabelledPixels.of(views, self.renderer.processor.image_processor)
        draw = torch.Generator().manual_seed(seed)
        size = (self.stage.global_batch_size // world_size(),)
        batches = (torch.randint(len(data.pixels), size, generator=draw) for _ in range(steps))
        stop = False
        # The batches of earlier steps are drawn again, so that the generator's state need not be saved.
        for number, rows in enumerate(itertools.islice(batches, self.done, None), self.done + 1):
            begun = time.perf_counter()
            loss = self.trainer.step(data[rows])
            if number % self.stage.logging_steps == 0 or number == steps:
                self.log(number, {LOSS: loss, TIME_STEP: time.perf_counter() - begun})
            [stop] = any_over_ranks(stop_requested(self.run))
            if number % self.stage.save_steps == 0 or number == steps or stop:
                self.save(number)
            if stop:
                return

    def log(self, number: int, metrics: dict[str, float]) -> None:
        """Log a row of metrics; after the last step also the accuracies on scenes never trained on."""
        if self.tracker is None:
            return
        self.tracker.log(
            self.stage.name, number, metrics | {UPDATE_SKIPPED: float(self.trainer.updates.take_skipped())}
        )
        if number == self.stage.max_steps:
            views = dense_views(TEST_SCENES, seed=0)
            with torch.no_grad():
                _, held_out = self.trainer.losses(
                    LabelledPixels.of(views, self.renderer.processor.image_processor)
                )
            self.tracker.log(self.stage.name, number, held_out)

    def save(self, number: int) -> None:
        """Write a checkpoint that loads anywhere, and what resuming needs in `state/` (rank 0 only)."""

        def write(path: Path) -> None:
            save_model(self.model, self.renderer.processor, path)
            (path / STATE).parent.mkdir()
            torch.save(self.trainer.state(), path / STATE)

        if rank() == 0:
            self.run.save_checkpoint(self.stage.name, number, write, keep=CHECKPOINTS_KEPT)


def pretrain_worker(job: StageJob[TinyModelStage]) -> None:
    """Train in one worker of the stage (see `run_workers`).

    Args:
        job: The stage's work.
    """
    stage = DenseStage(job)
    stage.train()
    if stage.tracker is not None:
        stage.tracker.close()
