"""Counting a sample's tokens without decoding its images."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.rendering import pixel_making
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.sample_tokens import SampleTokens
from posttrain.types import Block, ImageRef, Message, Sample, text_message

SIZES = [(64, 48), (5, 5), (1, 90), (333, 777), (777, 333), (1200, 40), (2000, 1500)]


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


def test_counts_are_the_lengths_of_what_is_rendered(
    renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1  # every other one is to be turned by a quarter
        Image.new("RGB", size, (number, 0, 0)).save(path, exif=exif)
        image = Block("image", image=ImageRef(str(path)))
        asked = Message("user", (image, Block("text", text="What is it? " * number), image))
        samples.append(Sample(str(number), (asked, text_message("assistant", "A cup."))))
    expected = [len(renderer.render(sample.messages).token_ids) for sample in samples]
    assert len(set(expected)) == len(SIZES)

    def decode(*_: Any) -> Any:
        raise AssertionError("an image was decoded")

    count = SampleTokens(renderer)
    monkeypatch.setattr(pixel_making, "open_image", decode)
    assert [count(sample) for sample in samples] == expected
