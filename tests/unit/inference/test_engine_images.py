"""Images enter an engine once, never take more than their room, and whoever waits for room gets it."""

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain.inference.images import EngineImages
from posttrain.media import images as media_images
from posttrain.media.images import ImageError
from posttrain.rendering.pixel_making import ImagePatches
from posttrain.rendering.pixels import ImageChangedError
from posttrain.rendering.rendered import Rendered
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.ledger import with_hashes
from posttrain.types import Block, ImageRef, Message, TrajectoryImage, VideoRef

SIDE = 64
NBYTES = 3 * SIDE**2
WAIT = 20


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", min_pixels=SIDE**2, max_pixels=SIDE**2)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thread has decoded."""
    found: Counter[str] = Counter()
    original = media_images._to_rgb

    def watched(image: Image.Image) -> Image.Image:
        found[threading.current_thread().name] += 1
        return original(image)

    monkeypatch.setattr(media_images, "_to_rgb", watched)
    return found


@pytest.fixture
def pictures(renderer: Renderer, tmp_path: Path) -> Callable[[int], TrajectoryImage]:
    """Makes the image of a number, as a prompt that was rendered by headers shows it."""
    counting = renderer.counting()

    def make(number: int) -> TrajectoryImage:
        path = tmp_path / f"{number}.png"
        if not path.exists():
            noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(noise).save(path)
        [image] = counting.render([Message("user", (Block("image", image=ImageRef(str(path))),))]).images
        return image

    return make


@pytest.fixture
def make_images(renderer: Renderer) -> Iterator[Callable[[float], EngineImages]]:
    """Makes images with room for so many."""
    made: list[EngineImages] = []

    def make(room: float) -> EngineImages:
        made.append(EngineImages(renderer, int(room * NBYTES), threads=2))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_image_is_decoded_once_in_a_thread_and_shared(
    make_images: Callable[[float], EngineImages],
    pictures: Callable[[int], TrajectoryImage],
    renderer: Renderer,
    decodes: Counter[str],
) -> None:
    images, picture = make_images(4), pictures(0)
    dialogues = [images.open() for _ in range(16)]
    shown = [dialogue.acquire([picture]).ready.result(WAIT)[0] for dialogue in dialogues]
    assert {each.pixels.data_ptr() for each in shown} == {shown[0].pixels.data_ptr()}
    assert sum(decodes.values()) == 1
    assert all(name.startswith("images") for name in decodes)
    assert images.nbytes == NBYTES == shown[0].pixels.nbytes
    values, grid = renderer.pixels(picture.ref)
    assert torch.equal(shown[0].patches([shown[0].pixels], "cpu"), values)
    assert torch.equal(shown[0].grid_thw, grid)
    known = with_hashes(Rendered([], [], [picture]), shown[:1])
    assert known.images[0].ref == ImageRef(picture.ref.path, renderer.media.load(picture.ref).sha256)


def test_videos_share_the_room_and_parts_of_a_file_are_told_apart(
    make_images: Callable[[float], EngineImages], renderer: Renderer, clips: list[VideoRef]
) -> None:
    shown = [clips[0], clips[0], replace(clips[0], start=1.0), clips[3]]  # the last has three frames
    asked = Message("user", tuple(Block("video", video=clip) for clip in shown))
    rendered = renderer.counting().render([asked])
    sizes = [renderer.media.load_video(clip).values.nbytes for clip in shown]
    images = make_images(0)
    first, second = images.open(), images.open()
    whole, again, part, odd = first.acquire(rendered.media).ready.result(WAIT)
    assert whole.pixels is again.pixels
    assert whole.sha256 == part.sha256 != odd.sha256
    assert whole.identity == again.identity != part.identity
    assert [len(each.pixels) for each in (whole, part, odd)] == [8, 6, 3]
    assert sum(sizes[1:]) < images.nbytes == sum(sizes[1:]) + sizes[3] // 3  # room for its fourth frame
    known = with_hashes(rendered, [whole, again, part, odd])
    assert known.videos == renderer.render([asked]).videos
    waiting = second.acquire(rendered.media[3:])
    assert not waiting.granted.done()
    first.close()
    assert torch.equal(waiting.ready.result(WAIT)[0].pixels, odd.pixels)
    second.close()
    assert not images.nbytes


def test_a_video_that_changes_after_it_was_rendered_is_not_shown(
    make_images: Callable[[float], EngineImages],
    renderer: Renderer,
    make_video: Callable[..., VideoRef],
    tmp_path: Path,
) -> None:
    ref = make_video(tmp_path / "film.mp4")
    rendered = renderer.counting().render([Message("user", (Block("video", video=ref),))])
    make_video(tmp_path / "film.mp4", frames=90)
    with pytest.raises(ImageChangedError, match=r"film\.mp4"):
        make_images(4).open().acquire(rendered.media).ready.result(WAIT)


def test_an_image_stays_between_turns_and_goes_with_the_last_dialogue(
    make_images: Callable[[float], EngineImages],
    pictures: Callable[[int], TrajectoryImage],
    decodes: Counter[str],
) -> None:
    images = make_images(4)
    first, second = images.open(), images.open()
    first.acquire([pictures(0), pictures(1)]).ready.result(WAIT)
    second.acquire([pictures(0)]).ready.result(WAIT)
    first.release()
    first.acquire([pictures(0), pictures(1), pictures(2)]).ready.result(WAIT)
    assert sum(decodes.values()) == 3
    first.close()
    assert images.nbytes == NBYTES  # the second shows it still
    second.release()
    assert images.nbytes == NBYTES
    second.close()
    assert images.nbytes == 0


def test_who_finds_no_room_waits_in_order_and_holds_nothing_meanwhile(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    images = make_images(2.5)
    dialogues = [images.open() for _ in range(5)]
    asked = [
        dialogue.acquire([pictures(2 * number), pictures(2 * number + 1)]).ready
        for number, dialogue in enumerate(dialogues[:3])
    ]
    asked[0].result(WAIT)
    small = dialogues[3].acquire([pictures(0)]).ready  # there would be room, but two came before
    text = dialogues[4].acquire([]).ready
    assert text.result(0) == []  # a text needs no room
    assert [future.done() for future in (*asked, small)] == [True, False, False, False]
    assert (images.waiting, images.nbytes) == (3, 2 * NBYTES)
    dialogues[1].close()  # it waits no longer
    assert asked[1].cancelled()
    dialogues[0].release()
    asked[2].result(WAIT)
    assert not small.done()
    dialogues[2].release()
    small.result(WAIT)
    assert images.waiting == 0
    assert images.peak_nbytes <= 2.5 * NBYTES


def test_a_turn_larger_than_the_room_is_alone(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    images = make_images(0.5)
    first, second = images.open(), images.open()
    assert len(first.acquire([pictures(0), pictures(1)]).ready.result(WAIT)) == 2
    waits = second.acquire([pictures(2)]).ready
    assert not waits.done()
    first.release()
    waits.result(WAIT)
    assert images.nbytes == NBYTES


def test_a_damaged_or_changed_file_is_its_askers_error_and_can_be_tried_again(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    images = make_images(3)
    damaged, changed, good = pictures(0), pictures(1), pictures(2)
    whole = Path(damaged.ref.path).read_bytes()
    Path(damaged.ref.path).write_bytes(whole[:300])
    Image.new("RGB", (SIDE, SIDE)).save(changed.ref.path)
    dialogues = [images.open() for _ in range(3)]
    asked = [
        dialogue.acquire([good, each]).ready
        for dialogue, each in zip(dialogues, (damaged, changed, good), strict=True)
    ]
    # What was rendered is told apart from what there is now, by the file's time of change.
    with pytest.raises(ImageChangedError, match=r"0\.png"):
        asked[0].result(WAIT)
    with pytest.raises(ImageChangedError, match=r"1\.png"):
        asked[1].result(WAIT)
    assert len(asked[2].result(WAIT)) == 2
    for dialogue in dialogues:
        dialogue.close()
    assert images.nbytes == 0
    again = pictures(0)  # measured anew, and still damaged
    with pytest.raises(ImageError, match=r"0\.png"):
        dialogues[0].acquire([again]).ready.result(WAIT)
    dialogues[0].release()
    Path(again.ref.path).write_bytes(whole)
    assert len(dialogues[0].acquire([pictures(0)]).ready.result(WAIT)) == 1


def test_turns_of_many_threads_end_within_any_room(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    """Dialogues of up to six images, in rooms too small even for one of them; some give up waiting."""
    shown = [pictures(number) for number in range(30)]

    def play(images: EngineImages, seed: int) -> int:
        draw, dialogue, seen = random.Random(seed), images.open(), []
        for turn in range(1, 7):
            seen = [*seen, draw.choice(shown)]
            asked = dialogue.acquire(seen).ready
            if draw.random() < 0.1:
                dialogue.release()
                continue
            assert len(asked.result(WAIT)) == turn
            dialogue.release()
        dialogue.close()
        return len(seen)

    for room in (0.5, 3, 7.5, 100):
        images = make_images(room)
        with ThreadPoolExecutor(16) as threads:
            assert sum(threads.map(lambda seed, at=images: play(at, seed), range(48))) == 48 * 6
        assert images.peak_nbytes <= max(room, 6) * NBYTES
        deadline = time.monotonic() + WAIT
        while images.nbytes:  # threads are still at what somebody gave up
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert images.waiting == 0


def test_pixels_are_freed_with_their_last_user_and_not_by_the_collector(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    """Futures keep their callbacks: a cycle through one of them would hold pixels beyond the bound."""
    images = make_images(8)
    gc.collect()
    gc.disable()
    try:
        left: list[weakref.ref[torch.Tensor]] = []
        for start in range(0, 12, 3):
            dialogue = images.open()
            dialogue.prefetch([pictures(start)])
            shown = dialogue.acquire([pictures(start + more) for more in range(3)]).ready.result(WAIT)
            left += [weakref.ref(each.pixels) for each in shown]
            del shown
            dialogue.close()
        deadline = time.monotonic() + WAIT
        while any(pixels() is not None for pixels in left) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [pixels() for pixels in left] == [None] * 12
    finally:
        gc.enable()


def test_closing_ends_those_who_wait(
    make_images: Callable[[float], EngineImages], pictures: Callable[[int], TrajectoryImage]
) -> None:
    images = make_images(1)
    held, waits = images.open(), images.open()
    held.acquire([pictures(0)]).ready.result(WAIT)
    waiting = waits.acquire([pictures(1)]).ready
    images.close()
    with pytest.raises(CancelledError):
        waiting.result(0)
    held.close()
    waits.close()


def test_what_makes_patches_can_be_sent(renderer: Renderer) -> None:
    """Engines of several processes get pixels by message."""
    assert isinstance(renderer.media.maker.image_patches, ImagePatches)
    dialogue = EngineImages(renderer, 1).open()
    assert dialogue.acquire([]).ready.result(0) == []
    dialogue.release()
    dialogue.acquire([])
    with pytest.raises(RuntimeError, match="release"):
        dialogue.acquire([])
