"""A tiny model that calls the zoom tool and answers, often enough for groups to differ."""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from posttrain.data.sources import load_samples
from posttrain.quickstart import marker_scenes
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.tools import declared_spec

STEPS, BATCH, RATE = 60, 16, 3e-3


def train_zoomer(directory: Path, scratch: Path) -> Path:
    """Train a tiny Qwen3-VL on the form of the quickstart's episodes for some seconds; return its folder."""
    build_tiny("qwen3_vl", directory, seed=0)
    scratch.mkdir(parents=True, exist_ok=True)
    marker_scenes.write(scratch, kind="zoom", split="sft", count=24, sloppiness=0.6)
    dataset = scratch / "zoom.yaml"
    dataset.write_text(
        "name: zoom\ndescription: Zooms.\nlicence: Apache-2.0\nsource: {path: data.jsonl}\n", encoding="utf-8"
    )
    samples = load_samples(str(dataset), scratch, scratch / "cache", use="dialogues")
    renderer = Renderer.from_pretrained(directory, "qwen3_vl")
    tools = [declared_spec("image_zoom_in")]
    rows = [renderer.render(samples[index].messages, tools) for index in range(len(samples))]
    model: Any = AutoModelForImageTextToText.from_pretrained(directory)
    model.model.visual.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    chosen = random.Random(0)
    for _ in range(STEPS):
        items = chosen.sample(rows, BATCH)
        batch = collate(items, renderer)
        labels = batch["input_ids"].clone()
        for row, item in enumerate(items):
            labels[row, len(item.supervised) :] = -100
            labels[row, : len(item.supervised)][~torch.tensor(item.supervised)] = -100
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    return directory
