"""Weights that change under an engine at work: what each token is of, and what older weights left behind."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.inference.engine import EngineError, EngineUse, Request, ScoreRequest
from posttrain.rendering.rendering import Renderer
from posttrain.types import Sample
from tests.integration.engine_truth import (
    TOLERANCE,
    gaps_by_version,
    logprobs_of,
    model_at,
    publish,
    requests_of,
    serve,
)
from tests.text_models import build_text


@pytest.fixture(scope="module")
def versions(make_talker: Callable[..., Path], talker: Path) -> dict[int, Path]:
    """Four policies with nothing in common."""
    return {0: talker} | {version: make_talker(10 + version) for version in (1, 2, 3)}


@pytest.fixture(scope="module")
def models(versions: dict[int, Path]) -> dict[int, Any]:
    return {version: model_at(path) for version, path in versions.items()}


def test_every_token_is_of_its_version_across_changes_at_random_steps(
    vllm_engine: Any,
    renderer: Renderer,
    samples: list[Sample],
    versions: dict[int, Path],
    models: dict[int, Any],
    talker: Path,
    soak: bool,
) -> None:
    generator = np.random.default_rng(0)
    met = set()
    try:
        for trial in range(5 if soak else 1):
            requests = requests_of(samples, renderer, 40, max_tokens=30)
            moments = generator.choice(range(1, 30), size=4, replace=False)
            changes = {
                int(moment): functools.partial(vllm_engine.load_weights, versions[version], version)
                for moment, version in zip(sorted(moments), generator.permutation([1, 2, 3, 0]), strict=True)
            }
            completions = serve(vllm_engine, requests, changes)
            gaps = gaps_by_version(requests, completions, models, renderer)
            for version, off in gaps.items():
                assert off[version] < TOLERANCE, (trial, version)
            met |= {tuple(dict.fromkeys(done.versions)) for done in completions}
            assert not any(flag for done in completions for flag in done.approximate)
            for done, request in zip(
                sorted(completions, key=lambda each: int(each.id)), requests, strict=True
            ):
                ended = done.finish_reason == "stop"
                assert ended or len(done.token_ids) == request.max_tokens, "a change must not cost budget"
            assert all(off[other] > 0.01 for v, off in gaps.items() for other in off if other != v and off[v])
    finally:
        vllm_engine.load_weights(talker, 0)
    assert any(len(turn) >= 4 for turn in met), f"turns must have lived through several changes: {met}"


def test_kept_keys_and_values_make_the_tokens_after_a_change_approximate(
    start_engine: Callable[..., Any],
    renderer: Renderer,
    samples: list[Sample],
    versions: dict[int, Path],
    models: dict[int, Any],
) -> None:
    engine = start_engine(versions[0], use=EngineUse(on_publish="keep"))
    requests = requests_of(samples, renderer, 12)
    late = requests_of(samples, renderer, 16)[12:]
    completions = serve(engine, [*requests], {8: lambda: engine.load_weights(versions[1], 1)})
    marked = [flag for done in completions for flag in done.approximate]
    assert marked == [version == 1 for done in completions for version in done.versions]
    gaps = gaps_by_version(requests, completions, models, renderer)
    assert gaps[0][0] < TOLERANCE
    assert 0.01 < gaps[1][1] < 10
    after = serve(engine, late)
    assert not any(flag for done in after for flag in done.approximate)
    assert gaps_by_version(late, after, models, renderer)[1][1] < TOLERANCE


def test_scores_are_the_log_probs_of_the_newest_weights_at_work_or_not(
    vllm_engine: Any,
    renderer: Renderer,
    samples: list[Sample],
    versions: dict[int, Path],
    models: dict[int, Any],
    talker: Path,
) -> None:
    requests = requests_of(samples, renderer, 70, max_tokens=12)  # more than the engine has room for
    sequences = [
        ScoreRequest(token_ids=[*request.token_ids, 5, 6, seed], images=request.images)
        for seed, request in enumerate(requests[:6])
    ]
    undisturbed = serve(vllm_engine, requests[:40])
    found: dict[str, list[list[float]]] = {}

    def publish_and_score() -> None:
        vllm_engine.load_weights(versions[1], 1)
        found["at work"] = vllm_engine.score(sequences)

    try:
        completions = serve(vllm_engine, requests, {3: publish_and_score})
        found["idle"] = vllm_engine.score(sequences)
        found["reversed"] = vllm_engine.score(sequences[::-1])[::-1]
    finally:
        vllm_engine.load_weights(talker, 0)
    assert len(completions) == len(requests)
    assert gaps_by_version(requests[:20], completions_of(completions, 20), models, renderer)[1][1] < TOLERANCE
    for scores in found.values():
        for sequence, own in zip(sequences, scores, strict=True):
            learner = logprobs_of(models[1], sequence.token_ids, sequence.images, renderer.image_token_id)
            assert (learner - torch.tensor(own)).abs().max() < TOLERANCE
    assert found["idle"] == found["reversed"]
    vllm_engine.score(sequences)
    again = serve(vllm_engine, requests[:40])
    assert sorted(again, key=str) == sorted(undisturbed, key=str), "scoring must not disturb what is sampled"


def completions_of(completions: list[Any], count: int) -> list[Any]:
    return [done for done in completions if int(done.id) < count]


def test_scores_come_whole_where_prefixes_are_cached(
    start_engine: Callable[..., Any],
    renderer: Renderer,
    samples: list[Sample],
    talker: Path,
    models: dict[int, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from posttrain.inference import vllm_engine as module  # noqa: PLC0415 (loads for seconds)

    plain = module.engine_arguments

    def caching(*settings: Any, **named: Any) -> Any:
        arguments = plain(*settings, **named)
        arguments.enable_prefix_caching = arguments.enable_chunked_prefill = True
        return arguments

    monkeypatch.setattr(module, "engine_arguments", caching)
    engine = start_engine(talker)
    requests = requests_of(samples, renderer, 2)
    sequences = [
        ScoreRequest(token_ids=[*request.token_ids, *range(5, 100), last], images=request.images)
        for request in requests
        for last in range(16)
    ]
    forward = engine.score(sequences)
    backward = engine.score(sequences[::-1])[::-1]
    assert forward == backward
    for sequence, own in list(zip(sequences, forward, strict=True))[::5]:
        learner = logprobs_of(models[0], sequence.token_ids, sequence.images, renderer.image_token_id)
        assert (learner - torch.tensor(own)).abs().max() < TOLERANCE


def test_what_cannot_be_scored_is_refused(
    vllm_engine: Any, renderer: Renderer, samples: list[Sample]
) -> None:
    [request] = requests_of(samples, renderer, 1)
    end = request.images[0].offset + request.images[0].num_tokens
    for token_ids, images in ([5], ()), (request.token_ids[:end], request.images):
        with pytest.raises(EngineError, match="two tokens or more"):
            vllm_engine.score([ScoreRequest(token_ids=token_ids, images=images)])
    assert not vllm_engine.busy


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen3", True), ("qwen3", False)])
def test_text_models_follow_new_weights(
    kind: str, tied: bool, start_engine: Callable[..., Any], tmp_path: Path
) -> None:
    paths = {version: build_text(tmp_path / str(version), version, kind, tied) for version in (0, 1)}
    engine = start_engine(paths[0], max_length=128, use=EngineUse(transfer="gloo"))
    sequence = ScoreRequest(token_ids=list(range(5, 40)))
    bring: list[tuple[Callable[..., None], int]] = [
        (engine.load_weights, 1),
        (functools.partial(publish, engine), 0),
        (functools.partial(publish, engine), 1),
        (engine.load_weights, 0),
    ]
    for how, version in bring:
        how(paths[version], version)
        [own] = engine.score([sequence])
        learner = logprobs_of(model_at(paths[version], text=True), sequence.token_ids)
        assert (learner - torch.tensor(own)).abs().max() < TOLERANCE, version
    [done] = serve(engine, [Request(id="a", token_ids=[5, 6], max_tokens=8, temperature=1.0, seed=0)])
    learner = logprobs_of(model_at(paths[0], text=True), [5, 6, *done.token_ids])[1:]
    assert (learner - torch.tensor(done.logprobs)).abs().max() < TOLERANCE


def test_images_are_seen_through_the_newest_tower(
    start_engine: Callable[..., Any],
    renderer: Renderer,
    samples: list[Sample],
    talker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The language model stays as it is, so that only the cached output of the tower can be wrong."""
    weights = load_file(talker / "model.safetensors")
    torch.manual_seed(0)
    for name, value in weights.items():
        if ".visual." in name:
            weights[name] = value + 0.1 * value.std() * torch.randn_like(value) if value.ndim > 1 else value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((talker / "config.json").read_text())
    models = {0: model_at(talker), 1: model_at(tmp_path)}
    engine = start_engine(talker, use=EngineUse(transfer="gloo"))
    asked = [
        ScoreRequest(token_ids=[*request.token_ids, 5, 6, 7], images=request.images)
        for request in requests_of(samples, renderer, 2)
    ]

    def gap(version: int) -> float:
        found = engine.score(asked)
        return max(
            (torch.tensor(own) - learner).abs().max().item()
            for own, each in zip(found, asked, strict=True)
            for learner in [
                logprobs_of(models[version], each.token_ids, each.images, renderer.image_token_id)
            ]
        )

    assert gap(0) < TOLERANCE
    engine.load_weights(tmp_path, 1)
    assert gap(1) < TOLERANCE
    assert gap(0) > 1e-3
    publish(engine, talker, 0)
    assert gap(0) < TOLERANCE
    with monkeypatch.context() as broken:
        broken.setattr(engine._engine, "reset_encoder_cache", lambda: None)
        publish(engine, tmp_path, 1)
        assert gap(1) > 1e-3, "a stale cache must be seen"
    publish(engine, tmp_path, 1)
    assert gap(1) < TOLERANCE
