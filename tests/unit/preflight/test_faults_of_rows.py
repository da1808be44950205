"""A fault is reported at the key at fault: of an image at the dataset, of a gold at the rewards."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

GOLD = {"boxes": [[1, 2, 30, 20]], "frame": "pixel_original"}


@pytest.mark.parametrize("place", ["stage", "evaluation"])
@pytest.mark.parametrize(
    ("picture", "gold", "key"),
    [
        (b"no image", GOLD, "data"),
        (b"", GOLD, "data"),
        (None, "[1, 2", "rewards"),
    ],
)
def test_the_key_at_fault_is_named(
    look: Any, folder: Path, place: str, picture: bytes | None, gold: Any, key: str
) -> None:
    datasets = folder / "datasets_cfg"
    for name in ("boxes", "good"):
        Image.new("RGB", (40, 30)).save(datasets / f"{name}.png")
        asked = {"role": "user", "content": "<image>Where is it?"}
        row = {"messages": [asked], "images": [f"{name}.png"], "ground_truth": GOLD}
        row |= {"ground_truth": gold} if name == "boxes" else {}
        (datasets / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
        told = f"name: {name}\ndescription: d\nlicence: MIT\nsource: {{path: {name}.jsonl}}\n"
        (datasets / f"{name}.yaml").write_text(told)
    if picture is not None:
        (datasets / "boxes.png").write_bytes(picture)
    rewards = [{"name": "grounding", "params": {"family": "qwen3_vl"}}]
    learned = {"data": "boxes" if place == "stage" else "good", "rewards": rewards}
    stage = {"stage": "rl", "max_steps": 1, "tasks": [learned]}
    evaluation = {"tasks": [{"data": "boxes", "rewards": rewards}]} if place == "evaluation" else None
    problems = look(stage, evaluation=evaluation).problems
    around = "stages[0].tasks[0]" if place == "stage" else "evaluation.tasks[0]"
    assert {problem.key for problem in problems} == {f"{around}.{key}"}
    assert all("boxes.jsonl" in problem.reason for problem in problems)
