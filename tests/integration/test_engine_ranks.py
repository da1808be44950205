"""An engine of two ranks, each a process with half of every layer: as exact as one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import EngineConfig
from posttrain.inference.engine import AdapterSlots, EngineUse, ScoreRequest
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
from tests.integration.test_engine_adapters import LANGUAGE_MODULES, adapt


@pytest.fixture
def two_ranks(
    start_engine: Callable[..., Any], make_talker: Callable[..., Path]
) -> Iterator[tuple[Any, Path]]:
    start = make_talker(20, tied=True)
    engine = start_engine(
        start,
        config=EngineConfig(kv_cache_gb=0.1, max_num_seqs=16, tensor_parallel_size=2),
        use=EngineUse(transfer="gloo", adapters=AdapterSlots(rank=4, resident=2)),
    )
    yield engine, start
    engine._engine.engine_core.shutdown()


def test_two_ranks_follow_new_weights_by_every_way(
    two_ranks: tuple[Any, Path],
    renderer: Renderer,
    samples: list[Sample],
    make_talker: Callable[..., Path],
    tmp_path: Path,
) -> None:
    engine, start = two_ranks
    assert engine.transfer_ranks == 2
    loaded, received = make_talker(21, tied=True), make_talker(22, tied=True)
    requests = requests_of(samples, renderer, 8)
    completions = serve(
        engine,
        requests,
        {6: lambda: engine.load_weights(loaded, 1), 12: lambda: publish(engine, received, 2)},
    )
    models = {version: model_at(path) for version, path in enumerate((start, loaded, received))}
    for version, off in gaps_by_version(requests, completions, models, renderer).items():
        assert off[version] < TOLERANCE
        assert all(gap > 0.01 for other, gap in off.items() if other != version)
    models[3] = adapt(received, tmp_path, 3)
    assert engine.load_adapter(tmp_path, 3) == LANGUAGE_MODULES
    asked = ScoreRequest(token_ids=[*requests[0].token_ids, 5, 6, 7], images=requests[0].images)
    learner = logprobs_of(models[3], asked.token_ids, asked.images, renderer.image_token_id)
    assert (learner - torch.tensor(engine.score([asked])[0])).abs().max() < TOLERANCE
