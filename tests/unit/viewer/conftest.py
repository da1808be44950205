"""A run directory as a quickstart run leaves it: real files, figures made up but of the usual shape."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from posttrain.evaluation.statistics import wilson_interval
from posttrain.media.images import save_image
from posttrain.quickstart.marker_scenes import question, zoom_call
from posttrain.quickstart.scenes import Marker, Scene, random_scene, sloppy_box
from tests.unit.viewer.pages import Page, copy_of, page_of

RL_STEPS = 60
CONFIG: dict[str, Any] = {
    "name": "quickstart",
    "seed": 0,
    "model": {"family": "qwen3_vl"},
    "stages": [
        {"stage": "tiny_model", "steps": 400},
        {"stage": "sft", "max_steps": 300, "data": {"mixture": {"zoom_demos": 0.5, "marker_lists": 0.5}}},
        {
            "stage": "rl",
            "max_steps": RL_STEPS,
            "algorithm": {"name": "sapo", "group_size": 8},
            "logprob_tolerance": 1e-4,
            "tasks": [
                {
                    "data": "markers_train",
                    "tools": ["image_zoom_in"],
                    "rewards": [{"name": "answer_accuracy"}, {"name": "tool_calls", "weight": 0.2}],
                }
            ],
        },
    ],
}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quickstart run; tests must not change it."""
    directory = tmp_path_factory.mktemp("runs") / "quickstart"
    write_run(directory)
    return directory


def write_run(directory: Path) -> None:
    """Write every file of a run that the viewer reads."""
    directory.mkdir()
    rng = random.Random(0)
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    environment = {"python": "3.11.9", "cpus": 2, "packages": {"torch": "2.13.0+cpu", "ray": "2.60.0"}}
    (directory / "environment.json").write_text(json.dumps(environment))
    write_rows(directory / "metrics.jsonl", metrics_rows(rng))
    write_rows(directory / "evaluation.jsonl", evaluation_rows())
    (directory / "rollouts" / "rl").mkdir(parents=True)
    for step in (1, 2, 3, RL_STEPS - 1, RL_STEPS):
        origin = {"stage": "rl", "step": step, "task": "markers_train"}
        rows = [
            episode_row(directory, random.Random(f"{step}/{group}"), group, episode, skill(step), origin)
            for group in range(4)
            for episode in range(4)
        ]
        write_rows(directory / "rollouts" / "rl" / f"step-{step}.jsonl", rows)
    for stage, level in (("sft", 0.35), ("rl", 0.85)):
        origin = {"stage": stage, "step": 0, "task": "with_tool"}
        rows = [
            episode_row(directory, random.Random(f"test/{i}"), i, 0, level, origin) | {"advantage": None}
            for i in range(24)
        ]
        write_rows(directory / "rollouts" / f"evaluation-{stage}-with_tool.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def skill(step: int) -> float:
    """How good the made-up policy is, from 0 to 1."""
    return 0.3 + 0.55 * (1 - math.exp(-step / 15))


def evaluation_rows() -> list[dict[str, Any]]:
    counts = {"with_tool": {"tiny_model": 11, "sft": 132, "rl": 280}, "without_tool": {"sft": 59, "rl": 46}}
    rows = []
    for task, stages in counts.items():
        for stage, correct in stages.items():
            low, high = wilson_interval(correct, 400)
            calls = 0.0 if task == "without_tool" else 0.97
            row = {
                "stage": stage,
                "task": task,
                "n": 400,
                "accuracy": correct / 400,
                "low": low,
                "high": high,
            }
            rows.append(row | {"metrics": {"tool_calls": calls, "tokens": 81.3}, "seconds": 9.1})
    return rows


def metrics_rows(rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    clock = 1_760_000_000.0
    for step in range(10, 401, 10):
        fit = 1 - math.exp(-step / 130)
        rows.append(
            {"stage": "tiny_model", "step": step, "time": clock + step * 0.3, "loss": 3.1 - 2.4 * fit}
            | {f"accuracy/{k}": fit * r for k, r in (("colour", 0.99), ("box", 0.9), ("letter", 0.84))}
        )
    for step in range(5, 301, 5):
        loss = 2.2 * math.exp(-step / 60) + 0.3 + rng.gauss(0, 0.03)
        rate = 2e-3 * (1 + math.cos(math.pi * step / 300)) / 2
        rows.append(
            {"stage": "sft", "step": step, "time": clock + 130 + step * 0.5, "loss": loss}
            | {"learning_rate": rate, "grad_norm": abs(rng.gauss(1.1, 0.3)), "time/step": 0.5}
        )
    rows += [rl_metrics(rng, step, clock + 300 + 3.1 * step) for step in range(1, RL_STEPS + 1)]
    return rows


def rl_metrics(rng: random.Random, step: int, clock: float) -> dict[str, Any]:
    level = skill(step)
    accuracy = min(1.0, max(0.0, rng.gauss(level, 0.06)))
    width = 0.02 + 0.1 * rng.random()
    return {
        "stage": "rl", "step": step, "time": clock,
        "reward/mean": accuracy + 0.2, "reward/answer_accuracy": accuracy,
        "reward/tool_calls": rng.gauss(0.95, 0.02), "reward/errors": 0.0,
        "episode/tool_calls": rng.gauss(1.02, 0.02), "episode/turns": rng.gauss(2.02, 0.02),
        "episode/tokens": rng.gauss(82, 1), "episode/truncated": 0.01, "loss": rng.gauss(-0.01, 0.01),
        "grad_norm": abs(rng.gauss(0.6, 0.15)), "learning_rate": 3e-4 * (1 - step / RL_STEPS),
        "entropy": 0.6 * math.exp(-step / 40) + rng.gauss(0.1, 0.01),
        "logprob_gap/max": 10 ** rng.gauss(-5.1, 0.15), "logprob_gap/mean": 10 ** rng.gauss(-6.3, 0.1),
        "kl/engine_learner": 10 ** rng.gauss(-9, 0.2), "kl/old_new": 10 ** rng.gauss(-3, 0.2),
        "gate/pos_p05": 1 - width, "gate/pos_p50": 1.0, "gate/pos_p95": 1 + width,
        "gate/neg_p05": 0.99 - 1.3 * width, "gate/neg_p50": 0.99, "gate/neg_p95": 0.99 + 0.8 * width,
        "advantage/zero_groups": max(0.0, rng.gauss(0.2 + 0.004 * step, 0.05)), "update/skipped": 0.0,
        "time/rollout": rng.gauss(1.4, 0.1), "time/learner": rng.gauss(1.2, 0.05), "time/publish": 0.2,
        "time/reward": 0.3, "time/step": rng.gauss(2.9, 0.1),
        "time/learner_wait": 1.4, "time/engine_wait": 1.5,
    }  # fmt: skip


def episode_row(
    directory: Path, rng: random.Random, group: int, episode: int, level: float, origin: dict[str, Any]
) -> dict[str, Any]:
    """One zoom episode of a policy that aims and reads well with probability `level`."""
    scene = random_scene(rng)
    target = scene.markers[0]
    luck = random.Random(f"{origin}/{group}/{episode}")
    right = luck.random() < level
    arguments, crop = aim(scene, target, luck, right)
    image, cut = (save_image(i, directory / "images") for i in (scene.draw(), crop))
    answer = target.letter if right else luck.choice([c for c in "AHKLOTXZ" if c != target.letter])
    box_hits = 1.0 if right else round(luck.uniform(0, 0.4), 2)
    messages = [
        message(
            "user", {"type": "image", "image": relative(image.path, directory)}, text(question(target.colour))
        ),
        message("assistant", text(zoom_call(target.colour, arguments["bbox_2d"]))),
        message("tool", {"type": "image", "image": relative(cut.path, directory)}, text("Image 1")),
        message("assistant", text(answer)),
    ]
    total = float(right) + 0.2
    return {
        **origin,
        "sample_id": f"train-question-{100 * max(1, origin['step']) + group}-0",
        "group": group,
        "episode": episode,
        "messages": messages,
        "num_prompt_messages": 1,
        "tool_calls": [
            {"name": "image_zoom_in_tool", "arguments": arguments, "ok": True, "error": "", "images": 1}
        ],
        "ground_truth": target.letter,
        "reward": {
            "total": total,
            "values": {"answer_accuracy": float(right), "tool_calls": 1.0},
            "parts": {
                "answer_accuracy": {"box_overlap": box_hits},
                "tool_calls": {"calls": 1.0, "target": 1.0},
            },
            "notes": {"answer_accuracy": f"{answer!r} against {target.letter!r}", "tool_calls": ""},
            "errors": {},
        },
        "advantage": (1.0 if right else -1.0) * luck.uniform(0.3, 1.6),
        "stop_reason": "answer",
        "num_tokens": 82,
        "num_sampled": 34,
        "version": origin["step"],
    }


def aim(scene: Scene, target: Marker, rng: random.Random, right: bool) -> tuple[dict[str, Any], Image.Image]:
    """A box around the target, or beside it, and what it shows."""
    box = sloppy_box(target, rng, 0.1 if right else 1.0)
    if not right and rng.random() < 0.4:
        box = [300, 300, 560, 540]
    corners = tuple(round(corner * 0.512) for corner in box)
    crop = scene.draw().crop(
        (corners[0], corners[1], max(corners[2], corners[0] + 1), max(corners[3], corners[1] + 1))
    )
    return {"img_idx": 0, "label": target.colour, "bbox_2d": box}, crop


def message(role: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def relative(path: str, directory: Path) -> str:
    return str(Path(path).relative_to(directory))


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory) -> Page:
    return page_of(copy_of(finished_run, tmp_path_factory.mktemp("page")))
