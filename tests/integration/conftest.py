"""One vLLM engine and one Ray cluster for the whole session: each takes seconds to start."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from posttrain.config import EngineConfig
from posttrain.media.images import save_image
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendering import Renderer
from posttrain.run.cluster import cluster
from posttrain.types import Block, Message, Sample, text_message

QUESTION = "Which letter is on the red marker?"
ENGINE_CONFIG = EngineConfig(kv_cache_gb=0.0625, max_num_seqs=64)  # a process has a dozen of them
MAX_LENGTH = 512


@pytest.fixture(scope="session")
def renderer(tiny_checkpoint: Path) -> Renderer:
    return Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")


@pytest.fixture(scope="session")
def make_talker(tmp_path_factory: pytest.TempPathFactory, renderer: Renderer) -> Callable[..., Path]:
    """Makes tiny checkpoints that talk: random text with an end, where a fresh one repeats one token."""

    def make(seed: int, favourite: int | None = None, tied: bool = False) -> Path:
        directory = tmp_path_factory.mktemp("talker") / str(seed)
        build_tiny("qwen3_vl", directory, seed=seed)
        model: Any = AutoModelForImageTextToText.from_pretrained(directory)
        if tied:
            model = _tied(model, seed)
        prompt = renderer.render([text_message("user", QUESTION)], add_generation_prompt=True)
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([prompt.token_ids])).last_hidden_state[0].mean(0)
            model.lm_head.weight.mul_(0.2)
            liked = {renderer.end_token_id: 4.0} | ({} if favourite is None else {favourite: 12.0})
            for token, logit in liked.items():
                model.lm_head.weight[token] = logit * hidden / (hidden @ hidden)
        model.save_pretrained(directory)
        return directory

    return make


def _tied(model: Any, seed: int) -> Any:
    """The same architecture with one matrix for input and output tokens, as the smaller Qwen3-VL have."""
    config = model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(seed)
    return type(model)(config)


@pytest.fixture(scope="session")
def talker(make_talker: Callable[..., Path]) -> Path:
    return make_talker(0)


@pytest.fixture(scope="session")
def start_engine(renderer: Renderer) -> Callable[..., Any]:
    """Starts engines; what a test says (`use`, `config`, …) replaces the usual."""
    from posttrain.inference.vllm_engine import VllmEngine  # noqa: PLC0415 (loads for seconds)

    started = []  # kept: an engine that is collected takes the process groups of all others with it

    def start(checkpoint: Path, **settings: Any) -> VllmEngine:
        usual = {"max_length": MAX_LENGTH, "dtype": "float32", "config": ENGINE_CONFIG}
        engine = VllmEngine(
            checkpoint, renderer.end_token_id, renderer.banned_token_ids, **(usual | settings)
        )
        started.append(engine)
        return engine

    return start


@pytest.fixture(scope="session")
def vllm_engine(start_engine: Callable[..., Any], talker: Path) -> Any:
    """The session's engine; a test that loads other weights puts `talker` back as version 0."""
    return start_engine(talker)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with cluster(num_cpus=2, num_gpus=0, object_store_mb=128, address=None):
        yield


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight noisy scenes, each with its question."""
    directory = tmp_path_factory.mktemp("scenes")
    made = []
    for index in range(8):
        torch.manual_seed(index)
        pixels = torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8).numpy()
        scene = save_image(Image.fromarray(pixels), directory)
        blocks = (Block("image", image=scene), Block("text", text=QUESTION))
        made.append(Sample(f"scene-{index}", (Message("user", blocks),), ground_truth="K"))
    return made
