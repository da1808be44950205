"""LoRA adapters in an engine: exact, several at once, none that does nothing unnoticed."""

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from posttrain.inference.engine import AdapterSlots, EngineError, EngineUse, ScoreRequest
from posttrain.rendering.rendering import Renderer
from posttrain.types import Sample
from tests.integration.engine_truth import (
    TOLERANCE,
    gaps_by_version,
    logprobs_of,
    model_at,
    requests_of,
    serve,
)

LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TOWER = r".*visual\.blocks.*\.(qkv|proj|linear_fc1|linear_fc2)"
#: Adapted matrices of the tiny model: four layers of seven; three blocks of four.
LANGUAGE_MODULES, TOWER_MODULES = 28, 12
#: Seed of a turn that goes on for long, though any token may end it.
LIVES_LONG = 0


def adapt(checkpoint: Path, directory: Path, seed: int, targets: str = LANGUAGE, rank: int = 4) -> Any:
    """Write an adapter whose B is not zero; return the adapted model."""
    torch.manual_seed(seed)
    model = get_peft_model(model_at(checkpoint), LoraConfig(r=rank, lora_alpha=16, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(str(directory))
    return model.eval()


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any], talker: Path) -> Any:
    return start_engine(talker, use=EngineUse(adapters=AdapterSlots(rank=4, resident=3)))


@pytest.fixture(scope="module")
def adapted(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Any]]:
    """Adapters 1 to 4: the directory and the adapted model."""
    directory = tmp_path_factory.mktemp("adapters")
    return {seed: (directory / str(seed), adapt(talker, directory / str(seed), seed)) for seed in range(1, 5)}


def scores(engine: Any, sequences: Sequence[ScoreRequest]) -> torch.Tensor:
    return torch.tensor([value for each in engine.score(sequences) for value in each])


def test_each_turn_ends_under_the_adapter_it_began_with(
    engine: Any,
    renderer: Renderer,
    samples: list[Sample],
    talker: Path,
    adapted: dict[int, tuple[Path, Any]],
) -> None:
    requests = requests_of(samples, renderer, 24)
    resident: list[set[int]] = []

    def submit(count: int) -> None:
        for _ in range(count):
            engine.submit(requests[len(submitted)])
            submitted.append(None)

    submitted: list[None] = []
    completions = []
    submit(8)
    for version in (1, 2):
        for _ in range(4):
            completions += engine.step()
        assert engine.load_adapter(adapted[version][0], version) == LANGUAGE_MODULES
        assert engine.version == version
        submit(8)
        resident.append(engine._engine.list_loras())
    found = engine.score([ScoreRequest(token_ids=requests[0].token_ids, images=requests[0].images)])
    completions += serve(engine, [])
    models = {0: model_at(talker), 1: adapted[1][1], 2: adapted[2][1]}
    gaps = gaps_by_version(requests, completions, models, renderer)
    assert {(int(done.id) // 8, version) for done in completions for version in done.versions} == {
        (0, 0),
        (1, 1),
        (2, 2),
    }
    for version, off in gaps.items():
        assert off[version] < TOLERANCE
        assert all(gap > 0.01 for other, gap in off.items() if other != version)
    learner = logprobs_of(models[2], requests[0].token_ids, requests[0].images, renderer.image_token_id)
    assert (learner - torch.tensor(found[0])).abs().max() < TOLERANCE
    assert [len(loaded) for loaded in resident] == [1, 2]
    assert len(engine._engine.list_loras()) == 1, "an adapter that nothing uses is unloaded"


def test_adapters_stay_within_their_room_however_many_are_published(
    engine: Any, renderer: Renderer, samples: list[Sample], adapted: dict[int, tuple[Path, Any]]
) -> None:
    long, *others = requests_of(samples, renderer, 16, max_tokens=200)
    long = replace(long, seed=LIVES_LONG)
    engine.load_adapter(adapted[1][0], 1)
    engine.submit(long)
    completions, together = [], 0
    for number, request in enumerate(others):
        seed = 2 + number % 3
        engine.load_adapter(adapted[seed][0], 100 + number)
        short = ScoreRequest(token_ids=request.token_ids, images=request.images)
        learner = logprobs_of(adapted[seed][1], short.token_ids, short.images, renderer.image_token_id)
        assert (learner - scores(engine, [short])).abs().max() < TOLERANCE
        assert len(engine._engine.list_loras()) <= 2
        together += len(engine._engine.list_loras()) == 2
        completions += engine.step()
    completions += serve(engine, [])
    assert together >= 10, "the long turn must live through many publishes"
    assert [set(done.versions) for done in completions] == [{1}]
    assert gaps_by_version([long], completions, {1: adapted[1][1]}, renderer)[1][1] < TOLERANCE


def test_another_adapter_under_the_same_path_and_version_is_another(
    engine: Any,
    renderer: Renderer,
    samples: list[Sample],
    adapted: dict[int, tuple[Path, Any]],
    tmp_path: Path,
) -> None:
    [request] = requests_of(samples, renderer, 1)
    sequence = ScoreRequest(token_ids=[*request.token_ids, 5, 6, 7], images=request.images)
    for seed in (1, 2):
        folder, model = adapted[seed]
        shutil.copytree(folder, tmp_path / "policy", dirs_exist_ok=True)
        engine.load_adapter(tmp_path / "policy", 7)
        learner = logprobs_of(model, sequence.token_ids, sequence.images, renderer.image_token_id)
        assert (learner - scores(engine, [sequence])).abs().max() < TOLERANCE


def test_an_adapter_without_room_is_refused(
    engine: Any, renderer: Renderer, samples: list[Sample], adapted: dict[int, tuple[Path, Any]]
) -> None:
    for seed, request in zip((1, 2, 3), requests_of(samples, renderer, 3), strict=True):
        engine.load_adapter(adapted[seed][0], seed)
        engine.submit(request)
    engine.step()
    with pytest.raises(EngineError, match=r"holds the 3 adapters of versions 1, 2, 3"):
        engine.load_adapter(adapted[4][0], 4)
    engine.abort()
    assert engine.load_adapter(adapted[4][0], 4) == LANGUAGE_MODULES


def test_an_adapter_that_changes_nothing_is_refused(
    engine: Any, talker: Path, adapted: dict[int, tuple[Path, Any]], tmp_path: Path
) -> None:
    """Its modules are named as those of a text model are, which vLLM loads, and applies nowhere."""
    sequence = ScoreRequest(token_ids=list(range(5, 40)))
    engine.load_adapter(adapted[1][0], 1)
    before = engine.score([sequence])
    path = adapted[2][0]
    (tmp_path / "adapter_config.json").write_text((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    renamed = {name.replace("language_model.", "text_tower."): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"changes 28 modules, but the engine's model only 0 of them"):
        engine.load_adapter(tmp_path, 2)
    assert engine.version == 1
    assert engine.score([sequence]) == before
    for targets, count, named in (
        (f"({LANGUAGE}|{TOWER})", 40, "visual"),
        (f"({LANGUAGE}|lm_head)", 29, "lm_head"),
    ):
        adapt(talker, tmp_path / named, 3, targets)
        with pytest.raises(
            EngineError, match=rf"changes {count} modules, but the engine's model only 28.*{named}"
        ):
            engine.load_adapter(tmp_path / named, 3)


def test_adapters_of_the_tower_see_images_through_their_own(
    start_engine: Callable[..., Any],
    renderer: Renderer,
    samples: list[Sample],
    talker: Path,
    tmp_path: Path,
) -> None:
    engine = start_engine(talker, use=EngineUse(adapters=AdapterSlots(rank=4, resident=2, tower=True)))
    requests = requests_of(samples, renderer, 12, max_tokens=40)
    models = {0: model_at(talker)}
    completions = []
    for version in (1, 2):
        path = tmp_path / str(version)
        models[version] = adapt(talker, path, version, f"({LANGUAGE}|{TOWER})")
        assert engine.load_adapter(path, version) == LANGUAGE_MODULES + TOWER_MODULES
        for request in requests[:6] if version == 1 else requests[6:]:
            engine.submit(request)
        for _ in range(4):
            completions += engine.step()
    completions += serve(engine, [])
    gaps = gaps_by_version(requests, completions, models, renderer)
    assert gaps[1][1] < TOLERANCE
    assert gaps[2][2] < TOLERANCE
    asked = [ScoreRequest(token_ids=[*each.token_ids, 5], images=each.images) for each in requests[:2]]
    for each, own in zip(asked, engine.score(asked), strict=True):
        learner = logprobs_of(models[2], each.token_ids, each.images, renderer.image_token_id)
        assert (learner - torch.tensor(own)).abs().max() < TOLERANCE


def test_new_weights_under_adapters_in_use_are_refused(
    engine: Any, renderer: Renderer, samples: list[Sample], talker: Path, adapted: dict[int, tuple[Path, Any]]
) -> None:
    engine.load_adapter(adapted[1][0], 1)
    engine.submit(requests_of(samples, renderer, 1)[0])
    with pytest.raises(EngineError, match="under adapters in use"):
        engine.load_weights(talker, 0)
    engine.abort()
    engine.load_weights(talker, 0)
    assert engine.version == 0
    assert engine._engine.list_loras() == set()
    sequence = ScoreRequest(token_ids=list(range(5, 40)))
    learner = logprobs_of(model_at(talker), sequence.token_ids)
    assert (learner - scores(engine, [sequence])).abs().max() < TOLERANCE


def test_merged_weights_score_as_the_adapter_does(
    engine: Any,
    renderer: Renderer,
    samples: list[Sample],
    talker: Path,
    adapted: dict[int, tuple[Path, Any]],
    tmp_path: Path,
) -> None:
    path, model = adapted[1]
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path)
    asked = requests_of(samples, renderer, 3)
    sequences = [ScoreRequest(token_ids=[*each.token_ids, 5, 6], images=each.images) for each in asked]
    found = []
    try:
        for bring in (
            lambda: engine.load_weights(talker, 20),
            lambda: engine.load_adapter(path, 21),
            lambda: engine.load_weights(tmp_path, 22),
        ):
            bring()
            found.append(scores(engine, sequences))
    finally:
        engine.load_weights(talker, 23)
    base, adapter, merged = found
    assert (adapter - merged).abs().max() < TOLERANCE
    assert (adapter - base).abs().max() > 0.01
