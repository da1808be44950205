"""A teacher's answers: the same data whatever went wrong on the way, and only what can be learned from."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import DistillationStage, RunConfig
from posttrain.curation.outcomes import CurationError
from posttrain.data.formats import read_canonical, write_canonical
from posttrain.data.sources import load_samples
from posttrain.first_party import PLUGINS
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.media.images import save_image
from posttrain.plugins import resolve
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendering import Renderer
from posttrain.run.directory import RunDir
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.supervised.teacher_answers import COLUMN, taught_datasets
from posttrain.training.supervised.teacher_prompts import TeachingError, check_same_tokens
from posttrain.types import Block, Message, Sample, text_message
from tests.at_work import answer_all

PROMPTS = 12
SCRIPTED = f"{Path(__file__).parents[2] / 'rollout' / 'scripted_engine.py'}:ScriptedEngine"


def prompt(index: int) -> Sample:
    """Every third goes on after an earlier answer; every second has an answer of its own."""
    messages = [text_message("system", "Be brief."), text_message("user", f"How much is {index} + 1?")]
    if index % 3 == 0:
        messages += [text_message("assistant", "Of what?"), text_message("user", "Of apples.")]
    if index % 2:
        messages.append(text_message("assistant", "I do not know."))
    return Sample(f"p{index}", tuple(messages), ground_truth=index + 1, columns={"level": index % 4})


def write_dataset(folder: Path, name: str, samples: list[Sample]) -> None:
    (folder / "datasets_cfg").mkdir(exist_ok=True)
    write_canonical(samples, folder / f"{name}.jsonl")
    dataset = {"name": name, "description": "Sums.", "licence": "CC0-1.0"}
    source = {"path": f"../{name}.jsonl"}
    (folder / "datasets_cfg" / f"{name}.yaml").write_text(yaml.safe_dump(dataset | {"source": source}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The sums in two datasets, which a mixture takes as 2 to 1."""
    write_dataset(tmp_path, "sums", [prompt(index) for index in range(8)])
    write_dataset(tmp_path, "more", [prompt(index) for index in range(8, PROMPTS)])
    return tmp_path


class Teaching:
    """A run with one stage whose teacher is asked as often as a test wants."""

    def __init__(self, data: Path, checkpoint: Path, name: str, teacher: dict, **stage: Any) -> None:
        settings = {
            "stage": "distillation",
            "max_steps": 1,
            "teacher": teacher,
            "data": {"mixture": {"sums": 2 / 3, "more": 1 / 3}, "max_length": 512},
            "generation": {"max_new_tokens": 64},
        }
        self.config = RunConfig.model_validate(
            {
                "name": name,
                "output_dir": str(data / "runs"),
                "base_dir": str(data),
                "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
                "stages": [settings | stage],
            }
        )
        self.run = RunDir.create(self.config, resume=True)
        self.checkpoint = checkpoint

    def __call__(self, teacher: Path | None = None, services: Any = None) -> dict[str, Path]:
        """The files of the answered prompts, by dataset."""
        stage = self.config.stages[0]
        assert isinstance(stage, DistillationStage)
        unused = EnginesAndRewards(self.config, self.run, PLUGINS)
        found, self.summary = taught_datasets(
            self.config, stage, self.run, self.checkpoint, teacher, services or unused
        )
        return {name: Path(str(dataset.source.path)) for name, dataset in found.items()}


@pytest.fixture
def by_endpoint(data: Path, tiny_checkpoint: Path, chat_server: Any) -> Callable[..., Teaching]:
    def make(name: str, **stage: Any) -> Teaching:
        settings = {"model": "m", "base_url": chat_server.url, "timeout_s": 2.0, "concurrency": 3}
        return Teaching(data, tiny_checkpoint, name, {"endpoint": settings}, **stage)

    return make


def answer(server: Any, body: dict) -> Any:
    """Tells the whole question again, and which of a prompt's answers this is."""
    asked = " ".join(message["content"] for message in body["messages"])
    return server.say(f"You asked: {asked} ({body['seed'] % 97})")


def rows(files: dict[str, Path]) -> list[Sample]:
    return [sample for path in files.values() for sample in read_canonical(path)]


def test_faults_make_no_difference_and_a_finished_set_is_used_again(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    how = {"generation": {"max_new_tokens": 64, "samples_per_prompt": 2}}
    chat_server.respond = lambda body: answer(chat_server, body)
    whole = by_endpoint("whole", **how)
    plain = whole()
    assert len(chat_server.requests) == 2 * PROMPTS
    came: Counter[str] = Counter()
    chat_server.requests.clear()

    def fail(body: dict) -> Any:
        """The first attempts, none to three of them, fail in one way or another."""
        with chat_server.lock:
            before, came[str(body)] = came[str(body)], came[str(body)] + 1
        faults = [429, 503, 0][: body["seed"] % 4]
        if before < len(faults):
            return chat_server.send(b"no", faults[before])
        return answer(chat_server, body)

    chat_server.respond = fail
    disturbed = by_endpoint("disturbed", **how)()
    assert len(chat_server.requests) > 2 * PROMPTS
    assert {name: path.read_bytes() for name, path in disturbed.items()} == {
        name: path.read_bytes() for name, path in plain.items()
    }
    chat_server.requests.clear()
    assert whole() == plain
    assert whole.summary == "24 answers; left out: none"
    assert not chat_server.requests


def test_a_row_is_the_prompt_and_the_teachers_answer(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    chat_server.respond = lambda body: answer(chat_server, body)
    files = by_endpoint("rows")()
    found = {sample.id: sample for sample in rows(files)}
    for path in files.values():  # a dataset that another run can take
        assert len(load_samples(str(path.with_suffix(".yaml")), ".")) == len(list(read_canonical(path)))
    assert set(found) == {f"p{index}/0" for index in range(PROMPTS)}
    for index in range(PROMPTS):
        given, sample = prompt(index), found[f"p{index}/0"]
        asked = given.messages[:-1] if index % 2 else given.messages
        assert [message.text for message in sample.messages[:-1]] == [message.text for message in asked]
        assert sample.messages[-1].role == "assistant"
        assert sample.messages[-1].text.startswith("You asked: Be brief.")
        # An earlier turn of somebody else is not learned from.
        assert {m.train for m in sample.messages[:-1] if m.role == "assistant"} <= {False}
        assert sample.ground_truth == index + 1
        assert sample.columns == {"level": index % 4, COLUMN: {"name": "m"}}
    seeds = [body["seed"] for body in chat_server.requests]
    assert len(set(seeds)) == PROMPTS
    assert {body["max_tokens"] for body in chat_server.requests} == {64}


def test_what_was_answered_before_a_stop_is_not_asked_again(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    served = itertools.count()

    def refuse_later(body: dict) -> Any:
        return answer(chat_server, body) if next(served) < 5 else chat_server.send(b"no", 401)

    chat_server.respond = refuse_later
    teaching = by_endpoint("stopped")
    with pytest.raises(CurationError, match="401"):
        teaching()
    chat_server.respond = lambda body: answer(chat_server, body)
    files = teaching()
    times = Counter(json.dumps(body) for body in chat_server.requests)
    assert len(times) == PROMPTS
    assert max(times.values()) <= 2
    undisturbed = by_endpoint("undisturbed")()
    assert [path.read_bytes() for path in files.values()] == [p.read_bytes() for p in undisturbed.values()]


def test_answers_that_cannot_be_learned_from_are_left_out_and_counted(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    odd = {"0 + 1": ("half an", "length"), "1 + 1": (" \n", "stop"), "2 + 1": ("2<|im_end|>!", "stop")}

    def respond(body: dict) -> Any:
        text = str(body["messages"])
        found = next((reply for key, reply in odd.items() if f"is {key}?" in text), None)
        return answer(chat_server, body) if found is None else chat_server.say(*found)

    chat_server.respond = respond
    teaching = by_endpoint("odd")
    assert len(rows(teaching())) == PROMPTS - 3
    assert teaching.summary == "9 answers; left out: 1 cut off, 1 empty, 1 with control tokens"
    chat_server.respond = lambda body: chat_server.say("never ends", "length")
    with pytest.raises(TeachingError, match=r"no answer to dataset sums .*'cut off': 8.*max_new_tokens"):
        by_endpoint("cut")()


def test_prompts_without_an_answer_end_the_stage_by_name(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    chat_server.respond = lambda body: (
        chat_server.send(b"too long", 400) if "5 + 1" in str(body) else answer(chat_server, body)
    )
    with pytest.raises(
        TeachingError, match=r"1 of 12 prompts .* p5 of dataset sums.*400: too long.*--resume"
    ):
        by_endpoint("refused")()


def test_kinds_of_prompts_that_cannot_be_asked(
    by_endpoint: Callable[..., Teaching], data: Path, tmp_path: Path
) -> None:
    from PIL import Image  # noqa: PLC0415

    image = Block("image", image=save_image(Image.new("RGB", (40, 40)), data))
    seen = Message("user", (image, Block("text", text="What is it?")))
    write_dataset(data, "more", [prompt(8), Sample("seen", (seen,))])
    with pytest.raises(TeachingError, match=r"dataset more, sample seen: the prompt has an image.*text_only"):
        by_endpoint("text", text_only=True)()
    write_dataset(data, "more", [prompt(8), Sample("tool", prompt(9).messages, tools=("image_zoom_in",))])
    with pytest.raises(TeachingError, match=r"dataset more, sample tool: the prompt has tools"):
        by_endpoint("tools")()
    with pytest.raises(TeachingError, match=r"num_prompts = 9 takes 3 prompts of dataset more, which has 2"):
        by_endpoint("many", num_prompts=9)()


def test_prompts_are_drawn_in_the_shares_of_the_mixture(
    by_endpoint: Callable[..., Teaching], chat_server: Any
) -> None:
    chat_server.respond = lambda body: answer(chat_server, body)
    files = by_endpoint("some", num_prompts=6)()
    assert {name: len(list(read_canonical(path))) for name, path in files.items()} == {"sums": 4, "more": 2}


class InProcess:
    """The pool's questions, answered here by a scripted engine; dies where it is told to.

    Args:
        checkpoint: The teacher.
        batches: How many are answered before it dies.
    """

    def __init__(self, checkpoint: Path, batches: float = float("inf")) -> None:
        renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
        make: Any = resolve(SCRIPTED, "posttrain.engines", object)
        self.engine = make(checkpoint, renderer.end_token_id, renderer.banned_token_ids)
        self.engine.say = lambda request: f"{request.seed % 1000}" + " and" * (len(request.token_ids) % 5)
        self.renderer, self.left = renderer, batches
        self.asked: list[int] = []

    def pool_with(self, checkpoint: Path, *_: Any, origin: str) -> "InProcess":
        assert origin == str(checkpoint)
        return self

    def close_pool(self) -> None:
        """As EnginesAndRewards has it."""

    def answer(self, questions: list[Question], sampling: AnswerSampling) -> list[SampledAnswer]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += [question.index for question in questions]
        return answer_all(self.engine, self.renderer, questions, sampling)


def test_engines_are_asked_for_what_is_missing_and_answers_are_theirs(
    data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.training.supervised.teacher_answers.ROUNDS", 1)
    how = {"generation": {"max_new_tokens": 64, "samples_per_prompt": 2, "engine": {"max_num_seqs": 5}}}
    teacher = {"checkpoint": str(tiny_checkpoint)}
    whole = Teaching(data, tiny_checkpoint, "whole", teacher, **how)(
        tiny_checkpoint, InProcess(tiny_checkpoint)
    )
    teaching = Teaching(data, tiny_checkpoint, "stopped", teacher, **how)
    with pytest.raises(KeyboardInterrupt):
        teaching(tiny_checkpoint, InProcess(tiny_checkpoint, batches=3))
    services = InProcess(tiny_checkpoint)
    files = teaching(tiny_checkpoint, services)
    assert services.asked == list(range(15, 24))
    assert [path.read_bytes() for path in files.values()] == [path.read_bytes() for path in whole.values()]
    texts = [sample.messages[-1].text for sample in rows(files)]
    assert len(set(texts)) == 2 * PROMPTS


def test_another_vocabulary_is_refused_where_tokens_are_learned_from(
    tiny_checkpoint: Path, tmp_path: Path, data: Path
) -> None:
    other = tmp_path / "qwen2-vl"
    build_tiny("qwen2_vl", other, seed=0)
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    teaching = Teaching(data, tiny_checkpoint, "other", {"checkpoint": str(other)}, loss={"top_k": 4})
    check_same_tokens(renderer, tiny_checkpoint, teaching.config)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(TeachingError, match=r"has other tokens than the student: .* remove loss.top_k"):
        teaching(other)
