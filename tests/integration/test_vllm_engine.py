"""vLLM against transformers: the same log-probs, the same samples for the same seeds, the newest weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from posttrain.inference.engine import EngineError, Request, ScoreRequest, stable_seed
from posttrain.inference.images import engine_images
from posttrain.media.images import save_image
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import Block, EnvironmentReply, Message, Sample, Trajectory, text_message
from tests.at_work import play
from tests.integration.engine_truth import logprobs_of, model_at, serve
from tools_env.environment import ToolEnvironment
from tools_env.loading import load_game
from tools_env.play.desktop import Desktop, played_turn
from tools_env.zoom import ImageZoomIn

LIMITS = Limits(max_new_tokens=24, max_length=400)
#: A run stops at 1e-4; a larger gap than this would be worth a look already.
TOLERANCE = 1e-5
GAME = load_game("tools_env.play.desktop:Desktop")


class ZoomsTwice:
    """The real tool environment, fed with a good call whatever the model wrote."""

    def __init__(self, image_dir: Path) -> None:
        self._environment = ToolEnvironment([ImageZoomIn()], 3, image_dir)
        self._turn = 0

    def start(self, sample: Sample) -> tuple[Message, ...]:
        self._sample = sample
        return self._environment.start(sample)

    def step(self, assistant_text: str) -> EnvironmentReply:
        self._turn += 1
        corner = stable_seed(self._sample.id, self._turn, assistant_text) % 600
        call = (
            '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d":'
            f' [{corner}, 100, {corner + 300}, 600], "label": "marker", "img_idx": 0}}}}\n</tool_call>'
        )
        return self._environment.step(call if self._turn < 3 else "done")

    def close(self) -> None:
        self._environment.close()


class PlaysWell:
    """The real desktop, on which a good player acts whatever the model wrote."""

    def __init__(self, image_dir: Path) -> None:
        self._environment = ToolEnvironment([], 9, image_dir, GAME)
        self._player = Desktop()

    def start(self, sample: Sample) -> tuple[Message, ...]:
        self._player.start(sample)
        return self._environment.start(sample)

    def step(self, assistant_text: str) -> EnvironmentReply:
        said = self._player.moves()[0][0]
        played_turn(self._player, said)
        return self._environment.step(said)

    def close(self) -> Mapping[str, float]:
        return self._environment.close()


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, TaskEnvironments]:
    return {"markers": TaskEnvironments([ImageZoomIn().spec], lambda: ZoomsTwice(tmp_path))}


@pytest.fixture
def jobs(samples: list[Sample]) -> list[EpisodeJob]:
    return [
        EpisodeJob(sample, "markers", group, index, stable_seed(7, group, index))
        for group, sample in enumerate(samples)
        for index in range(8)
    ]


@torch.no_grad()
def largest_gap(checkpoint: Path, trajectories: Sequence[Trajectory], renderer: Renderer) -> float:
    """Return the largest difference between the ledgers' log-probs and transformers'."""
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    gap = 0.0
    for start in range(0, len(trajectories), 16):
        part = trajectories[start : start + 16]
        logprobs = model(**collate(part, renderer)).logits.log_softmax(-1)
        for row, trajectory in enumerate(part):
            at = torch.tensor(trajectory.sampled).nonzero()[:, 0]
            learner = logprobs[row, at - 1, torch.tensor(trajectory.token_ids)[at]]
            gap = max(gap, (learner - torch.tensor(trajectory.logprobs)[at]).abs().max().item())
    return gap


def test_logprobs_of_episodes_with_several_images_agree_with_transformers(
    vllm_engine: Any,
    renderer: Renderer,
    tasks: dict[str, TaskEnvironments],
    jobs: list[EpisodeJob],
    talker: Path,
) -> None:
    trajectories = play(vllm_engine, renderer, tasks, jobs, LIMITS)
    assert {len(trajectory.images) for trajectory in trajectories} == {1, 2, 3}
    assert {trajectory.stop_reason for trajectory in trajectories} == {"answer", "max_tokens"}
    assert largest_gap(talker, trajectories, renderer) < TOLERANCE


def test_the_desktop_is_played_and_every_screen_reaches_the_engine_and_the_learner(
    vllm_engine: Any, renderer: Renderer, talker: Path, tmp_path: Path
) -> None:
    spec = replace(GAME.specs[0], description="", parameters={"type": "object"})  # the tiny one reads letters
    task = {"desk": TaskEnvironments([spec], lambda: PlaysWell(tmp_path))}
    asked = (text_message("user", Desktop.rules),)
    samples = [Sample(f"row-{seed}", asked, columns={"seed": seed}) for seed in range(24)]
    jobs = [EpisodeJob(each, "desk", group, 0, stable_seed(3, group)) for group, each in enumerate(samples)]
    trajectories = play(vllm_engine, renderer, task, jobs, Limits(max_new_tokens=24, max_length=480))
    assert max(len(trajectory.images) for trajectory in trajectories) > 2
    assert any(trajectory.outcome["solved"] for trajectory in trajectories)
    for trajectory in trajectories:
        acts = [
            call for call in trajectory.tool_calls if call.arguments["action"] not in ("terminate", "answer")
        ]
        assert len(acts) >= len(trajectory.images) - 1
        assert len({image.ref.sha256 for image in trajectory.images}) == len(trajectory.images)
    assert largest_gap(talker, trajectories, renderer) < TOLERANCE


def test_a_turn_ends_with_the_tokens_that_complete_a_stop(vllm_engine: Any, renderer: Renderer) -> None:
    prompt = renderer.render([text_message("user", "Which letter?")], add_generation_prompt=True).token_ids
    asked: dict[str, Any] = {"token_ids": prompt, "max_tokens": 24, "temperature": 1.0}
    requests = [Request(id=str(seed), seed=seed, **asked) for seed in range(24)]
    whole = {each.id: each for each in serve(vllm_engine, requests) if len(each.token_ids) > 5}
    stops = {name: (renderer.decode(each.token_ids[1:4]),) for name, each in whole.items()}
    stops = {name: stop for name, stop in stops.items() if "\ufffd" not in stop[0]}  # halves of letters
    assert len(stops) > 3
    again = [Request(id=name, seed=int(name), stops=stop, **asked) for name, stop in stops.items()]
    for cut in serve(vllm_engine, again):
        count, (stop,) = len(cut.token_ids), stops[cut.id]
        assert cut.token_ids == whole[cut.id].token_ids[:count]
        assert stop in renderer.decode(cut.token_ids)
        assert stop not in renderer.decode(cut.token_ids[:-1])
        assert (cut.finish_reason, count <= 4, len(cut.versions)) == ("stop", True, count)
        torch.testing.assert_close(cut.logprobs, whole[cut.id].logprobs[:count], rtol=0, atol=1e-5)


def test_a_rollout_is_a_function_of_weights_and_seeds(
    vllm_engine: Any,
    renderer: Renderer,
    tasks: dict[str, TaskEnvironments],
    jobs: list[EpisodeJob],
    talker: Path,
) -> None:
    first = play(vllm_engine, renderer, tasks, jobs, LIMITS)
    vllm_engine.load_weights(talker, 0)
    again = play(vllm_engine, renderer, tasks, jobs, LIMITS)
    assert again == first
    reversed_order = play(vllm_engine, renderer, tasks, jobs[::-1], LIMITS)
    assert [t.token_ids for t in reversed_order[::-1]] == [t.token_ids for t in first]
    group = [tuple(trajectory.token_ids) for trajectory in first[:8]]
    assert len(set(group)) == 8, "a group's episodes must differ"


def test_new_weights_are_served_whole_and_stamped(
    vllm_engine: Any,
    renderer: Renderer,
    tasks: dict[str, TaskEnvironments],
    jobs: list[EpisodeJob],
    talker: Path,
    make_talker: Callable[..., Path],
    tmp_path: Path,
) -> None:
    play(vllm_engine, renderer, tasks, jobs[:8], LIMITS)  # fills the caches with the old weights
    other = make_talker(1)
    weights_alone = tmp_path / "weights"
    weights_alone.mkdir()
    save_file(load_file(other / "model.safetensors"), weights_alone / "model.safetensors", {"format": "pt"})
    vllm_engine.load_weights(weights_alone, 5)
    try:
        trajectories = play(vllm_engine, renderer, tasks, jobs, LIMITS)
    finally:
        vllm_engine.load_weights(talker, 0)
    assert largest_gap(other, trajectories, renderer) < TOLERANCE
    assert largest_gap(talker, trajectories, renderer) > 0.01, "the check must see a skipped publish"
    assert {version for t in trajectories for version in t.versions} == {-1, 5}


def test_vision_tokens_are_never_sampled_however_likely(
    vllm_engine: Any,
    renderer: Renderer,
    tasks: dict[str, TaskEnvironments],
    jobs: list[EpisodeJob],
    talker: Path,
    make_talker: Callable[..., Path],
) -> None:
    eager = make_talker(2, favourite=renderer.image_token_id)
    vllm_engine.load_weights(eager, 1)
    try:
        trajectories = play(vllm_engine, renderer, tasks, jobs[:16], LIMITS)
        greedy = play(vllm_engine, renderer, tasks, jobs[:2], Limits(24, 400, temperature=0.0))
    finally:
        vllm_engine.load_weights(talker, 0)
    for trajectory in [*trajectories, *greedy]:
        sampled = {t for t, s in zip(trajectory.token_ids, trajectory.sampled, strict=True) if s}
        assert not sampled & set(renderer.banned_token_ids)
    logprobs = [p for t in trajectories for p, s in zip(t.logprobs, t.sampled, strict=True) if s]
    assert min(logprobs) < -5, "the image placeholder should have taken most of the mass"
    assert largest_gap(eager, trajectories, renderer) < TOLERANCE


def test_tied_embeddings_follow_a_reload(
    renderer: Renderer,
    tasks: dict[str, TaskEnvironments],
    jobs: list[EpisodeJob],
    make_talker: Callable[..., Path],
    start_engine: Callable[[Path], Any],
) -> None:
    before, after = make_talker(3, tied=True), make_talker(4, tied=True)
    engine = start_engine(before)
    engine.load_weights(after, 1)
    trajectories = play(engine, renderer, tasks, jobs[:16], LIMITS)
    assert largest_gap(after, trajectories, renderer) < TOLERANCE
    assert largest_gap(before, trajectories, renderer) > 0.01


def test_ids_in_flight_are_unique(vllm_engine: Any) -> None:
    vllm_engine.submit(Request(id="a", token_ids=[5, 6, 7], max_tokens=3, temperature=1.0, seed=1))
    with pytest.raises(EngineError, match="'a' is in flight already"):
        vllm_engine.submit(Request(id="a", token_ids=[5], max_tokens=3, temperature=1.0, seed=1))
    vllm_engine.abort()
    assert not vllm_engine.busy


def test_an_engine_sleeps_only_when_nothing_is_in_flight(vllm_engine: Any) -> None:
    request = Request(id="a", token_ids=[5, 6, 7], max_tokens=3, temperature=1.0, seed=1)
    vllm_engine.submit(request)
    with pytest.raises(EngineError, match="cannot sleep: 1 requests are in flight"):
        vllm_engine.sleep()
    [before] = serve(vllm_engine, [])
    vllm_engine.sleep()
    vllm_engine.wake()
    assert serve(vllm_engine, [request]) == [before]


def test_weights_of_another_model_are_refused_by_name(vllm_engine: Any, talker: Path, tmp_path: Path) -> None:
    weights = load_file(talker / "model.safetensors")
    name, _ = weights.popitem()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=name):
        vllm_engine.load_weights(tmp_path, 1)
    with pytest.raises(EngineError, match="does not hold the tensors"):
        vllm_engine.load_weights(tmp_path / "nothing", 1)
    assert vllm_engine.version == 0


def test_a_turn_ends_with_its_end_token_or_at_its_budget(vllm_engine: Any, renderer: Renderer) -> None:
    for seed in range(20):
        vllm_engine.submit(
            Request(id=str(seed), token_ids=[5, 6, 7], max_tokens=6, temperature=1.0, seed=seed)
        )
    completions = []
    while vllm_engine.busy:
        completions += vllm_engine.step()
    assert len(completions) == 20
    for completion in completions:
        ended = completion.token_ids[-1] == renderer.end_token_id
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == 6
        assert renderer.end_token_id not in completion.token_ids[:-1]
        assert len(completion.logprobs) == len(completion.token_ids)


def test_images_of_forty_shapes_are_seen_as_transformers_sees_them(
    vllm_engine: Any, renderer: Renderer, talker: Path, tmp_path: Path
) -> None:
    """Two to a prompt; each has as many placeholders in the engine as it has in the learner."""
    model = model_at(talker)
    sequences = []
    for number in range(0, 40, 2):
        shown = [
            save_image(Image.new("RGB", (37 + 7 * each, 211 - 3 * each), (6 * each, 90, 40)), tmp_path)
            for each in (number, number + 1)
        ]
        blocks = [*(Block("image", image=each) for each in shown), Block("text", text="Which?")]
        rendered = renderer.render([Message("user", tuple(blocks))], add_generation_prompt=True)
        images = engine_images(rendered.images, renderer)
        sequences.append(ScoreRequest(token_ids=[*rendered.token_ids, 5, 6], images=images))
    assert len({tuple(image.grid_thw.tolist()) for each in sequences for image in each.images}) > 4
    for asked, found in zip(sequences, vllm_engine.score(sequences), strict=True):
        learner = logprobs_of(model, asked.token_ids, asked.images, renderer.image_token_id)
        assert (learner - torch.tensor(found)).abs().max() < TOLERANCE


def test_an_answer_to_other_tokens_than_were_submitted_is_refused(vllm_engine: Any) -> None:
    """As where an engine's own processor expands placeholders a second time."""
    request = Request(id="twice", token_ids=[5, 6, 7], max_tokens=2, temperature=1.0, seed=0)
    vllm_engine.submit(request)
    [(key, submitted)] = vllm_engine._submitted.items()
    vllm_engine._submitted[key] = replace(submitted, request=replace(request, token_ids=[5, 6, 7, 7]))
    with pytest.raises(EngineError, match="other tokens than the 4 that were submitted"):
        serve(vllm_engine, [])
    vllm_engine.abort()


def test_requests_share_the_pixels_of_the_cache(renderer: Renderer, samples: list[Sample]) -> None:
    from posttrain.inference.vllm_inputs import prompt_of  # noqa: PLC0415 (loads for seconds)

    rendered = [renderer.render(sample.messages, add_generation_prompt=True) for sample in samples[:2]]
    refs = [image.ref for each in rendered for image in each.images]
    for _ in range(2):
        images = [image for each in rendered for image in engine_images(each.images, renderer)]
        request = Request(id="a", token_ids=[1], images=images, max_tokens=1, temperature=1.0, seed=0)
        prompt: Any = prompt_of(request, "")
        for item, image, ref in zip(prompt["mm_kwargs"]["image"], images, refs, strict=True):
            elem = item["pixel_values"]
            assert elem.data.data_ptr() == renderer.media.load(ref).values.data_ptr()
            assert torch.equal(elem.field.reduce_data([elem, elem]), renderer.pixels(ref)[0].repeat(2, 1))
            assert torch.equal(item["image_grid_thw"].data, image.grid_thw)


def test_an_engine_of_a_float32_model_keeps_float32(vllm_engine: Any) -> None:
    assert not torch.backends.cudnn.allow_tf32
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"
