"""Off-policy distillation with real parts: vLLM teaches, Ray Train trains, transformers checks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from posttrain.config import DatasetConfig, DistillationStage, RunConfig
from posttrain.data.formats import read_canonical, write_canonical
from posttrain.data.uses import prompt_of
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Rendered, Renderer
from posttrain.run.directory import RunDir
from posttrain.training.supervised.answer_log import read_top_tokens
from posttrain.training.supervised.ray_workers import run_workers
from posttrain.training.supervised.teacher_answers import COLUMN, taught_datasets
from posttrain.types import Sample, text_message
from tests.at_work import answer_all
from tests.stage_jobs import job_of, worker_name

TOP_K = 8
#: Engine and learner may differ by this much in float32 before a run stops.
TOLERANCE = 1e-4


class SessionEngine:
    """The session's engine in the place of a pool's."""

    def __init__(self, engine: Any, renderer: Renderer) -> None:
        self._engine, self._renderer = engine, renderer

    def pool_with(self, *_: Any, **__: Any) -> "SessionEngine":
        return self

    def close_pool(self) -> None:
        """It serves other tests."""

    def answer(self, questions: list[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        return answer_all(self._engine, self._renderer, questions, sampling)


@pytest.fixture(scope="module")
def data(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in words and about scenes, to learn from and to measure by."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "datasets_cfg").mkdir()
    words = [Sample(f"w{i}", (text_message("user", f"Say something about {i}."),)) for i in range(32)]
    for name, rows in {"learned": [*words[:24], *samples[:6]], "held": [*words[24:], *samples[6:]]}.items():
        write_canonical(rows, folder / f"{name}.jsonl")
        dataset = {"name": name, "description": "Prompts.", "licence": "CC0-1.0"}
        source = {"path": f"../{name}.jsonl"}
        (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset | {"source": source}))
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student")
    build_tiny("qwen3_vl", directory, seed=5)
    return directory


def run_of(data: Path, name: str, student: Path, teacher: Path) -> RunConfig:
    stage = {
        "stage": "distillation",
        "teacher": {"checkpoint": str(teacher)},
        "data": {"mixture": {name: 1.0}, "max_length": 400, "packing": True},
        "generation": {"max_new_tokens": 200, "top_p": 0.97, "samples_per_prompt": 2},
        "loss": {"top_k": TOP_K},
        "learning_rate": 3e-3,
        "max_steps": 12,
        "per_device_batch_size": 8,
        "logging_steps": 4,
    }
    return RunConfig.model_validate(
        {
            "name": name,
            "output_dir": str(data / "runs"),
            "base_dir": str(data),
            "model": {"name_or_path": str(student), "dtype": "float32"},
            "stages": [stage],
        }
    )


@pytest.fixture(scope="module")
def taught(
    data: Path, student: Path, talker: Path, vllm_engine: Any, renderer: Renderer
) -> dict[str, tuple[RunConfig, RunDir, DatasetConfig]]:
    """Both datasets with the teacher's answers."""
    found = {}
    for name in ("learned", "held"):
        config = run_of(data, name, student, talker)
        run = RunDir.create(config, resume=False)
        stage: Any = config.stages[0]
        services: Any = SessionEngine(vllm_engine, renderer)
        datasets, _ = taught_datasets(config, stage, run, student, talker, services)
        found[name] = (config, run, datasets[name])
    return found


def sequences(dataset: DatasetConfig, renderer: Renderer) -> list[tuple[Sample, Rendered]]:
    """Every answered prompt, with the tokens of its dialogue; those of the answer are supervised."""
    found = []
    for sample in read_canonical(str(dataset.source.path)):
        prompt = renderer.render(prompt_of(sample), add_generation_prompt=True)
        answer = sample.columns[COLUMN]["token_ids"]
        prompt.supervised = [False] * len(prompt.token_ids) + [True] * len(answer)
        prompt.token_ids += answer
        found.append((sample, prompt))
    return found


@torch.no_grad()
def logprobs(checkpoint: Path, items: list[Rendered], renderer: Renderer) -> list[torch.Tensor]:
    """[T, V] transformers' log-probs in the place of each token of the answers."""
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    found = []
    for item in items:
        logs = model(**collate([item], renderer)).logits[0].log_softmax(-1)
        found.append(logs[torch.tensor(item.supervised).nonzero()[:, 0] - 1])
    return found


def test_stored_logprobs_are_transformers_own_and_answers_are_as_sampled(
    taught: dict[str, tuple[RunConfig, RunDir, DatasetConfig]], talker: Path, renderer: Renderer
) -> None:
    _, _, dataset = taught["learned"]
    pairs = sequences(dataset, renderer)
    assert len(pairs) >= 15
    assert {bool(item.images) for _, item in pairs} == {True, False}
    for (sample, _), logs in zip(pairs, logprobs(talker, [item for _, item in pairs], renderer), strict=True):
        about = sample.columns[COLUMN]
        tokens = about["token_ids"]
        assert tokens[-1] == renderer.end_token_id
        assert sample.messages[-1].text == renderer.decode(tokens)
        folder = Path(str(dataset.source.path)).parent
        top = read_top_tokens(folder, about["shard"], about["start"], len(tokens))
        assert top.ids.shape == (len(tokens), TOP_K)
        stored = torch.from_numpy(top.logprobs)
        expected = logs.gather(1, torch.from_numpy(top.ids).long())
        assert (stored - expected).abs().max() < TOLERANCE
        assert (logs.topk(TOP_K).values - stored).abs().max() < TOLERANCE


def test_the_student_comes_closer_to_the_teacher_on_prompts_it_has_not_seen(
    ray_cluster: None,
    taught: dict[str, tuple[RunConfig, RunDir, DatasetConfig]],
    student: Path,
    talker: Path,
    renderer: Renderer,
) -> None:
    config, run, dataset = taught["learned"]
    stage = config.stages[0]
    assert isinstance(stage, DistillationStage)
    run_workers(
        worker_name(stage),
        job_of(config, run, student, replaced={"learned": dataset}),
        num_workers=1,
        use_gpu=False,
        scratch=run.scratch(stage.name),
    )
    final = run.newest_checkpoint(stage.name)
    assert final is not None
    assert final.name == "checkpoint-12"
    _, _, unseen = taught["held"]
    items = [item for _, item in sequences(unseen, renderer)]
    teacher = torch.cat(logprobs(talker, items, renderer))
    before, after = (
        (teacher.exp() * (teacher - torch.cat(logprobs(checkpoint, items, renderer)))).sum(1).mean().item()
        for checkpoint in (student, final)
    )
    assert after < 0.5 * before
