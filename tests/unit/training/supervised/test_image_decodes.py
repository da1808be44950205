"""Each image of a step is decoded once, by the rank that needs it, and preparing it ahead changes nothing."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.data_loader import DataLoaderShard
from PIL import Image

from posttrain.data.mixing import Mixture
from posttrain.media import images
from posttrain.media.images import ImageError, pixel_hash
from posttrain.rendering.collation import prepare
from posttrain.rendering.pixel_limits import PixelLimits
from posttrain.rendering.rendering import Renderer
from posttrain.training.supervised.batches import Batch, PackedBatches, PaddedBatches, RenderedDraws
from posttrain.training.supervised.dpo import PairCollator, RenderedPairs
from posttrain.types import Block, ImageRef, Message, Sample, text_message
from tests.unit.ranks import on_two_ranks

SAMPLES = 8
#: Room for a single image, as where a step's images are more than fit the memory; and room for all.
LIMITS = [PixelLimits(1), PixelLimits(1, threads=2), PixelLimits(2**30), PixelLimits(2**30, threads=2)]


class Rows(list[Sample]):
    """A dataset in memory."""

    fingerprint = "rows"


def write_samples(folder: Path) -> list[Sample]:
    """Samples with two images each, none of which another has; a step is half of them."""
    made = []
    for number in range(2 * SAMPLES):
        blocks = []
        for which in range(2):
            path = folder / f"{number}-{which}.png"
            noise = np.random.default_rng([number, which]).integers(0, 256, (64 + number, 90, 3), np.uint8)
            Image.fromarray(noise).save(path)
            blocks.append(Block("image", image=ImageRef(str(path))))
        asked = Message("user", (*blocks, Block("text", text="Which one? " * number)))
        answers = [(text_message("assistant", text),) for text in ("The first.", "The second one.")]
        made.append(Sample(str(number), (asked, *answers[0])))
    return made


def as_pair(sample: Sample) -> Sample:
    asked, answer = sample.messages
    return Sample(sample.id, (asked,), chosen=(answer,), rejected=(text_message("assistant", "None."),))


def mixture_of(found: list[Sample]) -> Mixture:
    rows: Any = Rows(found)
    return Mixture({"rows": rows}, {"rows": 1.0}, seed=0)


def rope(ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(ids.shape[1]).expand(3, *ids.shape), torch.zeros(0)


def steps(
    kind: str, found: list[Sample], renderer: Renderer, ranks: int = 1
) -> list[Callable[[], list[Batch]]]:
    """The micro-batches of two steps of this rank, as functions to be called in order."""
    if kind == "pairs":
        mixture = mixture_of([as_pair(sample) for sample in found])
        pairs = PairCollator(RenderedPairs(mixture, renderer, 10**6, 2 * SAMPLES), renderer, look_ahead=4)
        starts = range(0, 2 * SAMPLES, 2)
        return [lambda start=start: [pairs([{"draw": start}, {"draw": start + 1}])] for start in starts]
    draws = RenderedDraws(mixture_of(found), renderer, 10**6, 2 * SAMPLES)
    if kind == "packed":
        packed = PackedBatches(draws, renderer, rope, SAMPLES)
        rank = dist.get_rank() if dist.is_initialized() else 0
        shares = [packed([{"draw": step * ranks + rank}]) for step in range(2)]
    else:
        padded = PaddedBatches(draws, renderer)
        shares = [padded([{"draw": start}, {"draw": start + 1}]) for start in range(0, 2 * SAMPLES, 2)]
    return [lambda share=share: [make() for make in share["micro_batches"]] for share in shares]


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each image is decoded."""
    return count_decodes(monkeypatch.setattr)


def count_decodes(setattr_: Callable[..., None]) -> Counter[str]:
    counts: Counter[str] = Counter()
    original, lock = images._to_rgb, threading.Lock()

    def counted(image: Image.Image) -> Image.Image:
        decoded = original(image)
        with lock:
            counts[pixel_hash(decoded)] += 1
        return decoded

    setattr_(images, "_to_rgb", counted)
    return counts


def renderer_of(checkpoint: Path, limits: PixelLimits) -> Renderer:
    processor = Renderer.from_pretrained(checkpoint, "qwen3_vl", max_pixels=96 * 96).processor
    return Renderer(processor, "qwen3_vl", limits)


@pytest.mark.parametrize("kind", ["packed", "padded", "pairs"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_each_image_is_decoded_once(
    tiny_checkpoint: Path, tmp_path: Path, decodes: Counter[str], kind: str, limits: PixelLimits
) -> None:
    found = write_samples(tmp_path)
    for make in steps(kind, found, renderer_of(tiny_checkpoint, limits)):
        make()
    assert len(decodes) == 4 * SAMPLES
    assert set(decodes.values()) == {1}


@pytest.mark.parametrize("kind", ["packed", "padded", "pairs"])
def test_preparing_ahead_changes_no_number(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    found = write_samples(tmp_path)
    batches = []
    for limits in LIMITS:
        renderer = renderer_of(tiny_checkpoint, limits)
        batches.append([batch for make in steps(kind, found, renderer) for batch in make()])
        assert renderer.media.nbytes <= max(limits.max_bytes, batches[0][0]["pixel_values"].nbytes)
    for other in batches[1:]:
        assert len(other) == len(batches[0])
        for ours, theirs in zip(other, batches[0], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def one_rank(rank: int, checkpoint: Path, scratch: Path) -> None:
    """Two packed steps of one of two ranks, with the cache that a worker has."""
    dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=2)
    counts = count_decodes(setattr)
    found = write_samples(scratch / str(rank))
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl", max_pixels=96 * 96)
    for make in steps("packed", found, renderer, ranks=2):
        make()
    dist.destroy_process_group()
    torch.save(dict(counts), scratch / f"counts-{rank}.pt")


def test_two_ranks_decode_each_image_once_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    on_two_ranks(one_rank, tiny_checkpoint, tmp_path)
    first, second = (Counter(torch.load(tmp_path / f"counts-{rank}.pt")) for rank in range(2))
    assert first
    assert second
    assert len(first + second) == 4 * SAMPLES
    assert set((first + second).values()) == {1}


@pytest.mark.parametrize("kind", ["packed", "padded", "pairs"])
@pytest.mark.parametrize("limits", LIMITS[2:], ids=str)
def test_a_damaged_image_is_an_error_of_the_batch_that_needs_it(
    tiny_checkpoint: Path, tmp_path: Path, kind: str, limits: PixelLimits
) -> None:
    found = write_samples(tmp_path)
    mixture = mixture_of(found)
    _, row = mixture.index(2 * SAMPLES - 1)  # the last draw's, which the last batch needs
    damaged = tmp_path / f"{row}-1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    making = steps(kind, found, renderer_of(tiny_checkpoint, limits))
    for make in making[:-1]:
        make()
    with pytest.raises(ImageError, match=damaged.name):
        making[-1]()


def test_what_is_prepared_is_decoded_in_a_thread(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, threads = images._to_rgb, []

    def watched(image: Image.Image) -> Image.Image:
        threads.append(threading.current_thread())
        return original(image)

    monkeypatch.setattr(images, "_to_rgb", watched)
    renderer = renderer_of(tiny_checkpoint, PixelLimits(2**30, threads=1))
    sample, *_ = write_samples(tmp_path)
    rendered = renderer.counting().render(sample.messages)
    prepare([rendered], renderer)
    for image in rendered.images:
        renderer.pixels(image.ref)
    assert threads[0] != threading.main_thread()


def test_images_of_the_next_step_are_made_while_the_trainer_has_the_first(
    tiny_checkpoint: Path, tmp_path: Path, decodes: Counter[str]
) -> None:
    """The trainer's loader fetches a step ahead, so nothing more has to be asked for."""
    renderer = renderer_of(tiny_checkpoint, PixelLimits(2**30, threads=1))
    draws = RenderedDraws(mixture_of(write_samples(tmp_path)), renderer, 10**6, 2 * SAMPLES)
    rows: Any = [{"draw": step} for step in range(2)]
    packed = PackedBatches(draws, renderer, rope, SAMPLES)
    shares = iter(DataLoaderShard(rows, batch_size=1, collate_fn=packed))
    first = next(shares)
    deadline = time.monotonic() + 30
    while len(decodes) < 4 * SAMPLES:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for share in (first, next(shares)):
        for make in share["micro_batches"]:
            make()
    assert set(decodes.values()) == {1}
