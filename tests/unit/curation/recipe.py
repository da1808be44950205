"""A recipe with every filter, rows for it, and a model whose answers are all known; a program for tests."""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from posttrain.config.curation import CurationConfig, load_curation
from posttrain.curation.pipeline import curate
from posttrain.first_party import PLUGINS

SAMPLES = 4
THOUGHT = "<think>\nThe first number and the second together, step by step.\n</think>\n\n"
#: What the model says of row i, by the row's number modulo these: the tests' own account of every fate.
REJECTED, REWRITTEN, SIMPLE, TOO_FAR = 11, 7, 13, 17
LOOP = "and so we add the first number to the second number once more. " * 40

DATASET = """\
name: sums
description: Sums of two numbers, every other one with a picture.
licence: CC0-1.0
source: {path: data.jsonl}
"""
STEPS = """\
steps:
  - {filter: query, require_ground_truth: true}
  - {filter: query_review, endpoint: reviewer, min_complexity: 2}
  - {filter: domain, endpoint: reviewer, keep: [mathematics]}
  - {filter: pass_rate, endpoint: solver, reward: math, samples: 4, min: 0.25, max: 0.75}
  - {filter: image_needed, endpoint: solver, reward: math, domains: [arithmetic_algebra]}
  - filter: rejection_sampling
    endpoint: solver
    reward: math
    samples: 4
    choose: shortest
    checks: [{reward: "rewards.builtin.repetition:repetition", min: 0}]
  - {filter: response, thinking: required, min_reasoning_chars: 20}
  - {name: final, filter: reward, reward: math, min: 1}
"""


def write_data(folder: Path, rows: int) -> None:
    """`data.jsonl`: sums of i and i + 1, even ones with a picture; every tenth repeats the one before."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for shade in range(4):
        Image.new("RGB", (64, 48), (60 * shade, 90, 120)).save(folder / "images" / f"{shade}.png")
    with (folder / "data.jsonl").open("w") as file:
        for i in range(rows):
            n = i - 1 if i % 10 == 9 else i
            content: list[dict[str, Any]] = [{"type": "text", "text": f"[{n}] What is {n} + {n + 1}?"}]
            if n % 2 == 0:
                content.insert(0, {"type": "image", "image": f"images/{n % 4}.png"})
            row = {"id": f"r{i}", "messages": [{"role": "user", "content": content}], "extra": i}
            file.write(json.dumps(row | ({} if i % 19 == 18 else {"ground_truth": str(2 * n + 1)})) + "\n")
    (folder / "sums.yaml").write_text(DATASET)


def write_recipe(folder: Path, url: str, name: str = "c", steps: str = STEPS, more: str = "") -> Path:
    """Write a recipe into a folder that has the data, and return its path."""
    endpoints = ""
    for endpoint in ("reviewer", "solver"):
        if f"endpoint: {endpoint}" in steps:
            endpoints += (
                f"  {endpoint}: {{model: {endpoint}, base_url: '{url}', concurrency: 8, timeout_s: 60}}\n"
            )
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\noutput_dir: {folder / 'out'}\ndata: sums.yaml\n{more}"
        + (f"endpoints:\n{endpoints}" if endpoints else "")
        + steps
    )
    return path


def right_answers(n: int) -> int:
    """Return how many of the model's four answers to row n are right."""
    return n % (SAMPLES + 1)


def answer(body: dict[str, Any]) -> str:
    """Return what the model says; it depends on the request alone."""
    shown = body["messages"][-1]["content"]
    text = shown if isinstance(shown, str) else "".join(part.get("text", "") for part in shown)
    n = int(text.partition("[")[2].partition("]")[0])
    if body["model"] == "reviewer":
        if "sub-categories" in body["messages"][0]["content"]:
            name = "geometry" if n % 3 == 0 else "writing" if n % 23 == 5 else "arithmetic_algebra"
            return THOUGHT + json.dumps({"subcategory": name})
        verdict = {
            "action": "keep",
            "complexity": 1 if n % SIMPLE == 0 else 3,
            "reason": f"row {n}",
            "query": "",
        }
        if n % REJECTED == 0:
            verdict["action"] = "drop"
        elif n % REWRITTEN == 0:
            verdict |= {"action": "rewrite", "query": f"[{n}] What is {n} + {n + 1}, exactly?"}
        elif n % TOO_FAR == 0:
            verdict |= {
                "action": "rewrite",
                "query": f"[{n}] Tell me a long story about the sea and its ships.",
            }
        return "```json\n" + json.dumps(verdict) + "\n```"
    blind = isinstance(shown, str) and n % 2 == 0
    if blind:  # without its picture: solved for every third
        return THOUGHT + (str(2 * n + 1) if n % 3 == 1 else "I cannot tell.")
    is_right = body["seed"] < right_answers(n)
    padding = LOOP if n % 29 == 3 else "." * (10 - body["seed"])
    return THOUGHT + padding + f"\n\nThe sum is {2 * n + 1 if is_right else 2 * n}."


def expected(rows: int) -> dict[str, tuple[str, str]]:
    """Return the step and reason that drop a row, by its id; ("", "") if it is kept."""
    fates = {}
    for i in range(rows):
        fates[f"r{i}"] = ("", "")
        n = i - 1 if i % 10 == 9 else i
        blind_solved = n % 2 == 0 and n % 3 == 1
        for drops, step, reason in (
            (i % 19 == 18, "query", "nothing to verify by"),
            (n != i, "query", "repeated"),
            (n % REJECTED == 0, "query_review", "rejected by the model"),
            (n % SIMPLE == 0, "query_review", "too simple"),
            (n % REWRITTEN and n % TOO_FAR == 0, "query_review", "ambiguous"),
            (n % 3 and n % 23 == 5, "domain", "of another domain"),
            (right_answers(n) == 0, "pass_rate", "too hard"),
            (right_answers(n) == 4, "pass_rate", "too easy"),
            (n % 3 and blind_solved, "image_needed", "solved without the image"),
            (n % 29 == 3, "rejection_sampling", "no clean answer"),
        ):
            if drops:
                fates[f"r{i}"] = (step, reason)
                break
    return fates


def load(path: Path, **changes: Any) -> CurationConfig:
    """Load the recipe with some values changed."""
    return load_curation(path).model_copy(update=changes)


if __name__ == "__main__":
    curate(load_curation(sys.argv[1]), PLUGINS, resume=True)
