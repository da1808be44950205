"""The tasks of `bench_rl.py`: models, prompts, rewards and lengths, which are the same for every side."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from smollm2 import write_smollm2
from transformers import AutoModelForImageTextToText

from posttrain.data.checking import check_rows
from posttrain.data.dataset import Dataset
from posttrain.models.load import load_model
from posttrain.models.packed_attention import use_packed_attention
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.quickstart import marker_scenes
from posttrain.quickstart.tiny import build_tiny, initialise
from posttrain.rendering.collation import collate_packed
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.tools import tool_specs
from posttrain.types import ModelFamily

#: A learning rate that leaves weights as they are, so that every side samples from one policy at every step.
RATE = 1e-30
#: Processes that learn, one core each, and most tokens of the rows that they take.
LEARNERS, ROW = 2, 2048
#: Prompts of a task's data file; runs take them in turn.
ROWS = 256
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Italy": "Rome",
}
#: Things to list or to tell of, each with a word that an answer may have.
LISTED = {"fruits": "apple", "colours": "blue", "animals": "lion", "planets": "Mars", "tools": "hammer"}
TOLD = {"a fox": "forest", "the sea": "ship", "a school": "teacher", "a lost dog": "home", "winter": "snow"}


@dataclass(frozen=True)
class Task:
    """What is learned, and how much of it in a step.

    Attributes:
        name: Name in the figures.
        family: The model's family.
        prompts: Prompts of a step.
        group: Episodes of a prompt.
        max_new_tokens: Most tokens of a turn.
        max_length: Most tokens of an episode.
        make: Writes the model into a folder.
        reward: The reward, in `bench_rl_reward.py`.
        with_tool: Whether the zoom tool is offered.
        engines: Number of our engines, which divide the cores: where an engine's step is mostly Python, two
            of one thread are faster than one of two.
        large: Whether the model takes gigabytes in each process.
    """

    name: str
    family: ModelFamily
    prompts: int
    group: int
    max_new_tokens: int
    max_length: int
    make: Callable[[Path], None]
    reward: str = "mentions_gold"
    with_tool: bool = False
    engines: int = 1
    large: bool = False

    @property
    def episodes(self) -> int:
        """Episodes of a step."""
        return self.prompts * self.group


@torch.no_grad()
def write_endless(folder: Path) -> None:
    """Write a tiny Qwen3-VL that never ends an answer: one channel, the same at every token, forbids it."""
    build_tiny("qwen3_vl", folder)
    renderer = Renderer.from_pretrained(folder, "qwen3_vl")
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    for name, parameter in model.model.language_model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter[0] = 0.0
    model.model.language_model.embed_tokens.weight[:, 0] = 4.0
    model.lm_head.weight.mul_(0.2)  # far from the certainty of repeating one token
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[[renderer.end_token_id, renderer.pad_token_id], 0] = -50.0
    model.save_pretrained(folder)


def write_zoomer(folder: Path, steps: int = 250) -> None:
    """Write a tiny Qwen3-VL that calls the zoom tool in the right form, and then answers with a letter."""
    build_tiny("qwen3_vl", folder)
    data = folder / "demonstrations"
    data.mkdir()
    marker_scenes.write(data, kind="zoom", split="sft", count=150, sloppiness=0.6)
    samples = Dataset(check_rows(data / "data.jsonl"))
    renderer = Renderer.from_pretrained(folder, "qwen3_vl")
    model: Any = load_model(folder, dtype="float32", freeze_vision_tower=True)
    add_supervised_head(model)
    use_packed_attention(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    rng = random.Random(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        drawn = [samples[rng.randrange(len(samples))] for _ in range(16)]
        items = [renderer.render(sample.messages, tool_specs(sample)) for sample in drawn]
        batch = collate_packed(items, renderer, model.base_model.get_rope_index)
        learned = torch.tensor([flag for item in items for flag in item.supervised])[None]
        labels = batch["input_ids"].masked_fill(~learned, IGNORED)
        (-model(**batch, supervised_labels=labels).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def write_teacher(student: Path, folder: Path, times: float = 4.0) -> float:
    """Write a model like a student, twice as wide and as deep as it takes to be so many times as large.

    Returns:
        How many times as large it is.
    """
    small: Any = AutoModelForImageTextToText.from_pretrained(student)
    config, ratio, large = small.config, 0.0, small
    text, vision = config.text_config, config.vision_config
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(text, name, 2 * getattr(text, name))
    vision.out_hidden_size = text.hidden_size
    while ratio < times:
        torch.manual_seed(0)
        large = type(small)(copy.deepcopy(config))
        ratio = large.num_parameters() / small.num_parameters()
        text.num_hidden_layers += 1
    initialise(large)
    large.save_pretrained(folder)
    Renderer.from_pretrained(student, "qwen3_vl").processor.save_pretrained(folder)
    return ratio


TASKS = {
    task.name: task
    for task in (
        # Facts, sums, lists and stories: from a few tokens to the limit.
        Task("smollm2", "text", 4, 4, 128, 256, write_smollm2, large=True),
        Task("zoom", "qwen3_vl", 8, 8, 64, 256, write_zoomer, with_tool=True, engines=2),
        Task("tiny", "qwen3_vl", 4, 8, 64, 256, write_endless, reward="variety_of_answer", engines=2),
    )
}


def questions() -> Iterator[tuple[str, str]]:
    """Yield questions with the word that a right answer has, without end."""
    rng = random.Random(0)
    while True:
        country = rng.choice([*CAPITALS])
        yield f"What is the capital of {country}?", CAPITALS[country]
        listed = rng.choice([*LISTED])
        yield f"Name five {listed}.", LISTED[listed]
        left, right = rng.randint(2, 60), rng.randint(2, 60)
        yield f"What is {left} + {right}?", str(left + right)
        told = rng.choice([*TOLD])
        yield f"Tell me about {told}, in a few sentences.", TOLD[told]


def prepare(task: Task, folder: Path) -> None:
    """Write a task's model into `folder/model`, and its prompts into `folder/data`."""
    data = folder / "data"
    data.mkdir(parents=True)
    task.make(folder / "model")
    if task.with_tool:
        marker_scenes.write(data, kind="question", split="train", count=ROWS)
    else:
        asked = questions()
        rows = [{"id": f"q{index}", "messages": [], "ground_truth": ""} for index in range(ROWS)]
        for row in rows:
            text, gold = next(asked)
            row |= {"messages": [{"role": "user", "content": text}], "ground_truth": gold}
        lines = [json.dumps(row) + "\n" for row in rows]
        (data / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    described = {"name": "prompts", "description": "Prompts.", "licence": "Apache-2.0"}
    described |= {"source": {"path": "data/data.jsonl"}}
    (folder / "prompts.yaml").write_text(json.dumps(described), encoding="utf-8")
