"""The first half of off-policy distillation: a teacher's answers to prompts, made once and then kept.

<run>/<stage>/answers-<digest>/
    teacher.json                       everything that the answers depend on; the digest is of this
    answers.jsonl  top-*.safetensors   the answers as they came (see `answer_log`)
    00-<dataset>.jsonl  .yaml …        the rows that the student learns from, as datasets for any other run
    summary.json                       how many there are; written last
"""

import asyncio
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypedDict

import yaml
from tqdm import tqdm

from posttrain.concurrency import all_or_first_failure
from posttrain.config import DatasetConfig, DistillationStage, RunConfig, SourceConfig, load_dataset_config
from posttrain.config.endpoints import EndpointConfig
from posttrain.config.model import VIDEO_KEYS
from posttrain.curation.answers import AnswerCache
from posttrain.curation.asking import CachedModel, Sampling, checkpoint_version
from posttrain.curation.endpoint import Endpoint
from posttrain.curation.outcomes import RowError
from posttrain.data.formats import says_nothing, write_canonical
from posttrain.data.uses import prompt_of
from posttrain.files.durable import make_directory, write_atomic
from posttrain.inference.answers import AnswerSampling, SampledAnswer
from posttrain.rendering.rendered import RenderError
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck
from posttrain.run.directory import MANIFEST, RunDir
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.supervised.answer_log import AnswerLine, AnswerLog
from posttrain.training.supervised.teacher_prompts import (
    TeacherPrompts,
    TeachingError,
    check_same_tokens,
)
from posttrain.types import Sample, text_message

#: Column of the rows that says whose answer it is, and where its log-probs are.
COLUMN = "teacher"
SUMMARY = "summary.json"
#: Share of the questions that may stay without an answer.
MAX_FAILED_SHARE = 0.01
#: Answers that are sampled before they are written to disk, as a multiple of what the engines sample at once.
ROUNDS = 4
#: Most log-probs of a round, in bytes: they pass through Ray's object store and the driver's memory.
ROUND_BYTES = 1 << 28


class Summary(TypedDict):
    """What `summary.json` says: the number of answers, and of those left out by reason."""

    answers: int
    left_out: dict[str, int]


def taught_datasets(
    config: RunConfig,
    stage: DistillationStage,
    run: RunDir,
    student: Path,
    teacher: Path | None,
    services: EnginesAndRewards,
) -> tuple[dict[str, DatasetConfig], str]:
    """Have a stage's prompts answered, or continue; answers that are there already are used again.

    Args:
        config: The run's settings.
        stage: The stage's settings.
        run: The run's directory.
        student: The checkpoint that the stage starts from.
        teacher: The checkpoint that teaches; None if an endpoint does.
        services: The engines.

    Returns:
        The prompts with their answers, by name in the mixture; and a text that says how many there are.

    Raises:
        TeachingError: If prompts cannot be asked, too many have no answer, or no answer can be used.
        CurationError: If the endpoint refuses every request.
        DiskFull: If there is no space; what was answered before is kept.
    """
    teaching = _Teaching(config, stage, student, teacher)
    identity = json.dumps(teaching.identity(), indent=1, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = run.stage_dir(stage.name) / f"answers-{digest}"
    make_directory(folder)
    if not (folder / SUMMARY).is_file():
        write_atomic(folder / "teacher.json", identity + "\n")
        with closing(AnswerLog(folder)) as log:
            teaching.ask(log, services, run.stage_dir(stage.name) / "answers.sqlite")
            written = teaching.write(log, folder)
        write_atomic(folder / SUMMARY, json.dumps(written, indent=1) + "\n")
    summary: Summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in summary["left_out"].items())
    text = f"{summary['answers']:,} answers; left out: {left_out or 'none'}"
    return {name: teaching.dataset(name, folder) for name in stage.data.mixture}, text


class _Teaching:
    """A stage's teacher: asks it the questions, and writes what the student learns from."""

    def __init__(
        self, config: RunConfig, stage: DistillationStage, student: Path, teacher: Path | None
    ) -> None:
        self.config, self.stage, self.teacher = config, stage, teacher
        self._student = KnownRenderer(student, config.model)
        self.prompts = TeacherPrompts(config, stage, RenderCheck(self._student, stage.use))

    @property
    def _renderer(self) -> Renderer:
        return self._student.renderer

    def identity(self) -> dict[str, object]:
        """Return everything that the answers depend on, as a JSON value."""
        stage = self.stage
        rendering = {"min_pixels", "max_pixels", "earlier_thinking", "dtype"}
        rendering |= {key for key in VIDEO_KEYS if key in self.config.model.model_fields_set}
        if self.config.model.tool_format is not None:
            rendering.add("tool_format")
        how = stage.generation.model_dump(mode="json", exclude={"actors", "engine"})
        return {
            "teacher": self._teacher_identity(),
            "prompts": {name: dataset.identity for name, dataset in self.prompts.datasets.items()},
            "shares": stage.data.mixture,
            "num_prompts": stage.num_prompts,
            "generation": how | {"max_length": stage.data.max_length, "top_k": stage.loss.top_k},
            "model": self.config.model.model_dump(mode="json", include=rendering),
            "seed": [self.config.seed_of(stage), stage.shared_name],
        }

    def _teacher_identity(self) -> object:
        """Return the endpoint's model and request, the checkpoint's digest, or its files' sizes and times."""
        endpoint = self.stage.teacher.endpoint
        if endpoint is not None:
            return endpoint.model_dump(mode="json", include={"model", "image_max_pixels", "request"})
        manifest = Path(str(self.teacher)) / MANIFEST
        if manifest.is_file():
            return json.loads(manifest.read_text("utf-8"))["digest"]
        return checkpoint_version(str(self.teacher))

    def ask(self, log: AnswerLog, services: EnginesAndRewards, cache: Path) -> None:
        """Ask the questions that have no answer yet.

        Args:
            log: The answers; it is added to.
            services: The engines.
            cache: File of the answers of endpoints.

        Raises:
            TeachingError: If a prompt is of a kind that cannot be asked, or too many have no answer.
        """
        total = self.prompts.total
        todo = [number for number in range(total) if number not in log or number in log.failed]
        if not todo:
            return
        if self.teacher is not None and self.stage.loss.top_k:
            check_same_tokens(self._renderer, self.teacher, self.config)
        self.prompts.check()
        endpoint = self.stage.teacher.endpoint
        with tqdm(
            total=total, initial=total - len(todo), desc=f"{self.stage.name}: answers", disable=None
        ) as progress:
            if endpoint is None:
                self._ask_engines(log, todo, services, progress.update)
            else:
                asyncio.run(self._ask_endpoint(endpoint, log, todo, cache, progress.update))

    def _ask_engines(
        self,
        log: AnswerLog,
        todo: Sequence[int],
        services: EnginesAndRewards,
        on_answers: Callable[[int], object],
    ) -> None:
        """Have engines answer in rounds, each of which is written before the next."""
        stage, rollout, how = self.stage, self.stage.teacher_engines, self.stage.generation
        sampling = AnswerSampling(
            max_new_tokens=rollout.max_new_tokens,
            max_length=rollout.max_length,
            temperature=how.temperature,
            top_p=how.top_p,
            top_logprobs=stage.loss.top_k,
        )
        assert self.teacher is not None
        pool = services.pool_with(self.teacher, rollout, origin=stage.teacher.checkpoint or "")
        most = ROUND_BYTES // max(1, 8 * stage.loss.top_k * rollout.max_new_tokens)
        size = max(1, min(ROUNDS * rollout.actors * rollout.engine.max_num_seqs, most))
        for start in range(0, len(todo), size):
            questions = [self.prompts.question(number) for number in todo[start : start + size]]
            answers = pool.answer(questions, sampling)
            lines = [self._line(answer) for answer in answers]
            tops = [a.top if line.text else None for a, line in zip(answers, lines, strict=True)]
            log.append(lines, tops)
            on_answers(len(answers))
            self._check_failed(log)
        if stage.teacher.checkpoint is not None:
            services.close_pool()  # nothing else uses this model, and the student needs the room

    async def _ask_endpoint(
        self,
        settings: EndpointConfig,
        log: AnswerLog,
        todo: Sequence[int],
        cache: Path,
        on_answers: Callable[[int], object],
    ) -> None:
        """Have an endpoint answer, as many questions at once as its settings say."""
        how = self.stage.generation
        if how.top_p < 1:
            settings = settings.model_copy(update={"request": {"top_p": how.top_p} | settings.request})
        numbers = iter(todo)

        async def work(model: CachedModel) -> None:
            for number in numbers:
                question = self.prompts.question(number)
                # Seeds of 63 bits are refused by some servers.
                sampling = Sampling(how.temperature, how.max_new_tokens, question.seed % 2**31)
                try:
                    found = await model.ask(question.messages, sampling, lambda completion: completion)
                    answer = SampledAnswer(number, found.text, truncated=found.truncated)
                except RowError as error:
                    answer = SampledAnswer(number, error=str(error))
                log.append([self._line(answer)])
                on_answers(1)
                self._check_failed(log)

        with closing(AnswerCache(cache)) as answers:
            async with Endpoint("teacher", settings) as endpoint:
                model = CachedModel(endpoint, answers)
                await all_or_first_failure(work(model) for _ in range(min(settings.concurrency, len(todo))))

    def _line(self, answer: SampledAnswer) -> AnswerLine:
        """Make the log's line of an answer: an error, the reason why it is left out, or its text."""
        if answer.error:
            return AnswerLine(answer.index, error=answer.error)
        if reason := self._unusable(answer):
            return AnswerLine(answer.index, left_out=reason)
        return AnswerLine(answer.index, answer.text, answer.token_ids if answer.top is not None else ())

    def _unusable(self, answer: SampledAnswer) -> str:
        """Say why the student cannot learn from an answer; "" if it can."""
        if answer.truncated:
            return "cut off"
        if says_nothing(text_message("assistant", answer.text)):
            return "empty"
        try:
            turns = (text_message("user", "?"), text_message("assistant", answer.text))
            self._renderer.render(turns)
        except RenderError:
            return "with control tokens"
        return ""

    def _check_failed(self, log: AnswerLog) -> None:
        """Raise TeachingError if more questions have no answer than may."""
        total = self.prompts.total
        if len(log.failed) > MAX_FAILED_SHARE * total:
            number = max(log.failed)
            raise TeachingError(
                f"stage {self.stage.name}: {len(log.failed):,} of {total:,} prompts have no answer. The last"
                f" is sample {self.prompts.sample(number).id} of dataset {self.prompts.dataset_of(number)}:"
                f" {log.read(number).error}. What was answered is kept: fix the cause, then go on with"
                " --resume"
            )

    def write(self, log: AnswerLog, folder: Path) -> Summary:
        """Write the rows of each dataset, and its YAML file; count the answers.

        Raises:
            TeachingError: If a dataset has no answer that can be used.
        """
        left_out: Counter[str] = Counter()
        answers = 0
        for name in self.prompts.datasets:
            own: Counter[str] = Counter()
            file = self._file(name, folder)
            write_canonical(self._rows(name, log, own), file)
            told = self.dataset(name, folder).model_dump(mode="json", exclude_unset=True)
            told["source"] = {"path": file.name}
            write_atomic(file.with_suffix(".yaml"), yaml.safe_dump(told, sort_keys=False))
            if not own[""]:
                raise TeachingError(
                    f"stage {self.stage.name}: no answer to dataset {name} can be used ({dict(own)}); raise"
                    " generation.max_new_tokens if they were cut off"
                )
            answers += own.pop("")
            left_out += own
        return {"answers": answers, "left_out": dict(left_out)}

    def _rows(self, dataset: str, log: AnswerLog, counts: Counter[str]) -> Iterator[Sample]:
        """Make the rows of one dataset.

        Args:
            dataset: Its name.
            log: The answers.
            counts: Is set to the number of answers left out by reason, and of those used, under "".
        """
        for number in range(self.prompts.total):
            if self.prompts.dataset_of(number) != dataset:
                continue
            line = log.read(number)
            reason = "failed" if line.error else line.left_out
            counts[reason] += 1
            if reason:
                continue
            sample = self.prompts.sample(number)
            yield dataclasses.replace(
                sample,
                id=f"{sample.id}/{self.prompts.place(number)}",
                messages=(*prompt_of(sample), text_message("assistant", line.text)),
                chosen=(),
                rejected=(),
                columns=sample.columns | {COLUMN: {"name": self._teacher_name(), **line.sampled()}},
            )

    def _teacher_name(self) -> str:
        endpoint = self.stage.teacher.endpoint
        return str(self.teacher) if endpoint is None else endpoint.model

    def _file(self, name: str, folder: Path) -> Path:
        """Return the file of a dataset's rows; its number tells apart datasets of the same name."""
        return folder / f"{list(self.prompts.datasets).index(name):02}-{Path(name).stem}.jsonl"

    def dataset(self, name: str, folder: Path) -> DatasetConfig:
        """Describe a dataset of the mixture with the teacher's answers."""
        whole = load_dataset_config(name, self.config.base_dir)
        return DatasetConfig(
            name=whole.name,
            description=f"{whole.description} Answered by {self._teacher_name()}.",
            licence=whole.licence,
            source=SourceConfig(path=str(self._file(name, folder))),
        )
