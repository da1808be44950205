"""What an engine's tests compare with: transformers' log-probs of the same tokens and images."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from posttrain.inference.engine import Completion, EngineImage, Request
from posttrain.inference.images import engine_images
from posttrain.inference.weight_transfer import Manifest, TensorInfo, open_sender
from posttrain.rendering.rendering import Renderer
from posttrain.types import Sample

#: Seen: 5e-6. A run stops at 1e-4.
TOLERANCE = 1e-5


def model_at(checkpoint: Path, text: bool = False) -> Any:
    """Return a checkpoint as transformers loads it."""
    loader = AutoModelForCausalLM if text else AutoModelForImageTextToText
    return loader.from_pretrained(checkpoint, dtype=torch.float32).eval()


@torch.no_grad()
def logprobs_of(
    model: Any, token_ids: Sequence[int], images: Sequence[EngineImage] = (), image_token_id: int = -1
) -> torch.Tensor:
    """Return the log-probs of all tokens but the first."""
    ids = torch.tensor([list(token_ids)])
    shown: dict[str, torch.Tensor] = {}
    if images:
        shown["pixel_values"] = images[0].patches([image.pixels for image in images], "cpu")
        shown["image_grid_thw"] = torch.stack([image.grid_thw for image in images])
        shown["mm_token_type_ids"] = (ids == image_token_id).int()
    logits = model(input_ids=ids, **shown).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def requests_of(
    samples: Sequence[Sample], renderer: Renderer, count: int, max_tokens: int = 24
) -> list[Request]:
    """Make requests of the samples in turn; every third has no image."""
    requests = []
    for index in range(count):
        rendered = renderer.render(samples[index % len(samples)].messages, add_generation_prompt=True)
        images, ids = engine_images(rendered.images, renderer), list(rendered.token_ids)
        if index % 3 == 2:
            images, ids = [], [id_ for id_ in ids if id_ not in renderer.banned_token_ids]
        requests.append(
            Request(
                id=str(index),
                token_ids=ids,
                images=images,
                max_tokens=max_tokens,
                temperature=1.0,
                seed=index,
            )
        )
    return requests


def serve(
    engine: Any, requests: Sequence[Request], between: Mapping[int, Callable[[], object]] = {}
) -> list[Completion]:
    """Step an engine until all requests are done; `between` says what to do before which step."""
    waiting, done, steps = list(requests), list[Completion](), 0
    while waiting or engine.busy:
        while waiting and len(requests) - len(waiting) - len(done) < engine.capacity:
            engine.submit(waiting.pop(0))
        between.get(steps, lambda: None)()
        done += engine.step()
        steps += 1
    return done


def publish(engine: Any, checkpoint: Path, version: int) -> None:
    """Have an engine receive a checkpoint's weights by transfer, from a thread of this process."""
    weights = load_file(checkpoint / "model.safetensors")
    described = (
        TensorInfo(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in weights.items()
    )
    manifest = Manifest(tuple(described))
    sender = open_sender("gloo", "127.0.0.1", 1 + engine.transfer_ranks, timeout=30)
    with ThreadPoolExecutor(1) as thread:
        joined = thread.submit(sender.join)
        engine.join_transfer(sender.group.at(1))
        joined.result()
        sent = thread.submit(sender.send, manifest, iter(weights.items()))
        engine.receive_weights(manifest, version)
        sent.result()
    sender.close()


def gaps_by_version(
    requests: Sequence[Request],
    completions: Sequence[Completion],
    models: Mapping[int, Any],
    renderer: Renderer,
) -> dict[int, dict[int, float]]:
    """Return the largest gap of the tokens of each version, under the model of each version."""
    asked = {request.id: request for request in requests}
    gaps = {version: dict.fromkeys(models, 0.0) for version in models}
    for done in completions:
        request = asked[done.id]
        ids = [*request.token_ids, *done.token_ids]
        for scored, model in models.items():
            learner = logprobs_of(model, ids, request.images, renderer.image_token_id)
            off = (learner[-len(done.token_ids) :] - torch.tensor(done.logprobs)).abs().tolist()
            for version, gap in zip(done.versions, off, strict=True):
                gaps[version][scored] = max(gaps[version][scored], gap)
    return gaps
