"""An engine of two ranks, each a process with half of every layer: as exact as one.

It has a process of its own, since it changes the threads and process groups of all engines beside it.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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

ROOT = Path(__file__).parents[2]


def test_two_ranks_follow_new_weights_by_every_way(
    samples: list[Sample], make_talker: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoints = [make_talker(seed, tied=True) for seed in (20, 21, 22)]
    (tmp_path / "asked.pickle").write_bytes(pickle.dumps((checkpoints, samples)))
    command = [sys.executable, "-m", "tests.integration.test_engine_ranks", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check(folder: Path) -> None:
    """Sample across changes of the weights by disk and by transfer, and score under an adapter."""
    from posttrain.inference.vllm_engine import VllmEngine  # noqa: PLC0415 (loads for seconds)

    checkpoints, samples = pickle.loads((folder / "asked.pickle").read_bytes())
    start, loaded, received = checkpoints
    renderer = Renderer.from_pretrained(start, "qwen3_vl")
    engine = VllmEngine(
        start,
        renderer.end_token_id,
        renderer.banned_token_ids,
        max_length=512,
        dtype="float32",
        config=EngineConfig(kv_cache_gb=0.1, max_num_seqs=16, tensor_parallel_size=2),
        use=EngineUse(transfer="gloo", adapters=AdapterSlots(rank=4, resident=2)),
    )
    assert engine.transfer_ranks == 2
    requests = requests_of(samples, renderer, 8)
    changes = {6: lambda: engine.load_weights(loaded, 1), 12: lambda: publish(engine, received, 2)}
    completions = serve(engine, requests, changes)
    models = {version: model_at(path) for version, path in enumerate(checkpoints)}
    for version, off in gaps_by_version(requests, completions, models, renderer).items():
        assert off[version] < TOLERANCE
        assert all(gap > 0.01 for other, gap in off.items() if other != version)
    models[3] = adapt(received, folder / "adapter", 3)
    assert engine.load_adapter(folder / "adapter", 3) == LANGUAGE_MODULES
    asked = ScoreRequest(token_ids=[*requests[0].token_ids, 5, 6, 7], images=requests[0].images)
    learner = logprobs_of(models[3], asked.token_ids, asked.images, renderer.image_token_id)
    assert (learner - torch.tensor(engine.score([asked])[0])).abs().max() < TOLERANCE


if __name__ == "__main__":
    check(Path(sys.argv[1]))
