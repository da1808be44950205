"""Batches against transformers' own padding, and the checks between placeholders and images."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posttrain.media.images import save_image
from posttrain.rendering.collation import CollationError, collate, pad_rows
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.types import Block, ImageRef, Message, Trajectory, text_message


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", max_pixels=96 * 96)


@pytest.fixture
def image(tmp_path: Path) -> ImageRef:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    return save_image(Image.fromarray(pixels), tmp_path)


def dialogue(*blocks: Block) -> list[Message]:
    return [Message("user", blocks), text_message("assistant", "A")]


def test_equals_transformers_right_padded_batch(renderer, image):
    texts = ["hi", "Which letter is on the red marker?", "one\ntwo\nthree\nfour"]
    shown = [Block("image", image=image)]
    dialogues = [dialogue(*shown * number, Block("text", text=text)) for number, text in enumerate(texts)]
    batch = collate([renderer.render(messages) for messages in dialogues], renderer)
    loaded = Image.open(image.path)
    written = [
        renderer.processor.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "image"}] * number + [{"type": "text", "text": text}]},
                {"role": "assistant", "content": "A"},
            ],
            tokenize=False,
        )
        for number, text in enumerate(texts)
    ]
    expected = renderer.processor(
        text=written, images=[loaded] * 3, padding=True, padding_side="right", return_tensors="pt"
    )
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=0, atol=0)


def test_text_only_batch_has_no_pixels(renderer):
    batch = collate([renderer.render(dialogue(Block("text", text="hi")))], renderer)
    assert batch.keys() == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_takes_trajectories(renderer, image):
    rendered = renderer.render(dialogue(Block("image", image=image)))
    ledger = Trajectory("s", "t", 0, 0, token_ids=rendered.token_ids, images=rendered.images)
    ours, theirs = collate([ledger], renderer), collate([rendered], renderer)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def broken(rendered: Rendered, case: str) -> Rendered:
    ids, images = list(rendered.token_ids), [dataclasses.replace(image) for image in rendered.images]
    if case == "cut text":
        ids = ids[: images[0].offset + 2]
    elif case == "sampled placeholder":
        ids.append(ids[images[0].offset])
    elif case == "lost image":
        images = []
    elif case == "shifted":
        images[0].offset += 1
    return Rendered(ids, rendered.supervised, images)


@pytest.mark.parametrize("case", ["cut text", "sampled placeholder", "lost image", "shifted"])
def test_placeholders_without_their_image_are_refused(renderer, image, case):
    good = renderer.render(dialogue(Block("image", image=image)))
    with pytest.raises(CollationError, match=r"sequences \[1\]"):
        collate([good, broken(good, case)], renderer)


def test_another_resolution_is_refused(renderer, image, tiny_checkpoint):
    other = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl", min_pixels=128**2, max_pixels=128**2)
    rendered = renderer.render(dialogue(Block("image", image=image)))
    with pytest.raises(CollationError, match="another resolution"):
        collate([rendered], other)


def test_pad_rows():
    assert pad_rows([[1, 2], [3]], -100, np.int64).tolist() == [[1, 2], [3, -100]]
    assert pad_rows([[True], []], False, bool).tolist() == [[True], [False]]
    assert pad_rows([], 0, np.float32).shape == (0, 0)


def test_a_thousand_short_samples_take_well_under_a_step(renderer, image):
    """Rendering and collation of 64 samples, images already seen: a model step takes about 300 ms."""
    messages = dialogue(Block("image", image=image), Block("text", text="Which letter is on the red marker?"))
    collate([renderer.render(messages)], renderer)
    start = time.process_time()
    for _ in range(16):
        collate([renderer.render(messages) for _ in range(64)], renderer)
    assert (time.process_time() - start) / 16 < 0.15
