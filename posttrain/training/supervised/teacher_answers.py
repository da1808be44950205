"""The first half of off-policy distillation: a teacher's answers to prompts, made once and then kept.

<run>/<stage>/answers-<digest>/
    teacher.json                       everything that the answers depend on; the digest is of this
    answers.jsonl  top-*.safetensors   the answers as they came (see `answer_log`)
    00-<dataset>.jsonl  .yaml …        what is learned from, as datasets that any other run can take
    summary.json                       how many there are; written last
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from posttrain.config import DatasetConfig, DistillationStage, RunConfig, SourceConfig, load_dataset_config
from posttrain.config.endpoints import EndpointConfig
from posttrain.curation.answers import AnswerCache
from posttrain.curation.asking import CachedModel, Sampling, checkpoint_version
from posttrain.curation.endpoint import Endpoint
from posttrain.curation.outcomes import RowError
from posttrain.data.dataset import Dataset
from posttrain.data.formats import write_canonical
from posttrain.data.mixing import Mixture
from posttrain.data.sources import load_samples
from posttrain.files.durable import make_directory, write_atomic
from posttrain.inference.answers import AnswerSampling, Question, SampledAnswer
from posttrain.inference.engine import stable_seed
from posttrain.rendering.rendering import Renderer, RenderError
from posttrain.rendering.tools import tool_specs
from posttrain.run.directory import MANIFEST, RunDir
from posttrain.training.engines_and_rewards import EnginesAndRewards
from posttrain.training.supervised.answer_log import AnswerLog
from posttrain.types import Message, Sample, text_message

#: Column of the rows that says whose answer it is, and where its log-probs are.
COLUMN = "teacher"
SUMMARY = "summary.json"
#: Share of the questions that may stay without an answer.
MAX_FAILED_SHARE = 0.01
#: Answers that are sampled before they are put on the disk, as a multiple of what the engines sample at once.
ROUNDS = 4
#: Most log-probs of a round, in bytes: they pass through Ray's object store and the driver's memory.
ROUND_BYTES = 1 << 28


class TeachingError(RuntimeError):
    """The teacher's answers cannot be had, or not learned from; the message says why and what to do."""


def taught_datasets(
    config: RunConfig,
    stage: DistillationStage,
    run: RunDir,
    student: Path,
    teacher: Path | None,
    services: EnginesAndRewards,
) -> tuple[dict[str, DatasetConfig], str]:
    """Have a stage's prompts answered, or go on with that; answers that are there are used again.

    Args:
        config: The run's settings.
        stage: The stage's.
        run: The run's directory.
        student: The checkpoint that the stage starts from.
        teacher: The checkpoint that teaches; None where an endpoint does.
        services: Has the engines.

    Returns:
        By name in the mixture, the prompts with their answers; and how many there are, in words.

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
            summary = teaching.write(log, folder)
        write_atomic(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in summary["left_out"].items())
    text = f"{summary['answers']:,} answers; left out: {left_out or 'none'}"
    return {name: teaching.dataset(name, folder) for name in stage.data.mixture}, text


class _Teaching:
    """A stage's prompts, as questions numbered from 0: the samples of a prompt follow each other."""

    def __init__(
        self, config: RunConfig, stage: DistillationStage, student: Path, teacher: Path | None
    ) -> None:
        self.config, self.stage, self.teacher = config, stage, teacher
        self.datasets = {name: load_samples(name, config.base_dir) for name in stage.data.mixture}
        self.prompts = chosen_prompts(self.datasets, stage, config.seed)
        self._samples = stage.generation.samples_per_prompt
        self._total = len(self.prompts) * self._samples
        self._student = student

    @functools.cached_property
    def _renderer(self) -> Renderer:
        return Renderer.from_config(self._student, self.config.model)

    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on, as a JSON value."""
        stage = self.stage
        rendering = {"min_pixels", "max_pixels", "earlier_thinking", "dtype"}
        how = stage.generation.model_dump(mode="json", exclude={"actors", "engine"})
        return {
            "teacher": self._teacher_identity(),
            "prompts": {name: dataset.fingerprint for name, dataset in self.datasets.items()},
            "shares": stage.data.mixture,
            "num_prompts": stage.num_prompts,
            "generation": how | {"max_length": stage.data.max_length, "top_k": stage.loss.top_k},
            "model": self.config.model.model_dump(mode="json", include=rendering),
            "seed": [self.config.seed, stage.name],
        }

    def _teacher_identity(self) -> Any:
        endpoint = self.stage.teacher.endpoint
        if endpoint is not None:
            return endpoint.model_dump(mode="json", include={"model", "image_max_pixels", "request"})
        manifest = Path(str(self.teacher)) / MANIFEST
        if manifest.is_file():
            return json.loads(manifest.read_text("utf-8"))["digest"]
        return checkpoint_version(str(self.teacher))

    def ask(self, log: AnswerLog, services: EnginesAndRewards, cache: Path) -> None:
        """Ask whatever has no answer yet.

        Raises:
            TeachingError: If a prompt is of a kind that cannot be asked, or too many have no answer.
        """
        todo = [n for n in range(self._total) if n not in log or n in log.failed]
        if not todo:
            return
        self._check()
        endpoint = self.stage.teacher.endpoint
        with tqdm(
            total=self._total,
            initial=self._total - len(todo),
            desc=f"{self.stage.name}: answers",
            disable=None,
        ) as progress:
            if endpoint is None:
                self._ask_engines(log, todo, services, progress)
            else:
                asyncio.run(self._ask_endpoint(endpoint, log, todo, cache, progress))

    def _check(self) -> None:
        """Refuse a teacher or prompts that the stage cannot learn from, before any is asked."""
        if self.teacher is not None and self.stage.loss.top_k:
            check_same_tokens(self._renderer, self.teacher, self.config)
        if not self.stage.text_only and self.teacher is not None:
            return
        for name, row in self.prompts:
            sample = self.datasets[name][row]
            where = f"dataset {name}, sample {sample.id}"
            if self.stage.text_only and any(
                block.type != "text" for message in sample.messages for block in message.content
            ):
                raise TeachingError(
                    f"{where}: the prompt has an image, and the stage is text_only; filter the dataset by"
                    " `{column: images, max_length: 0}`, or set text_only: false"
                )
            if self.teacher is None and sample.tools:
                raise TeachingError(
                    f"{where}: the prompt has tools, of which an endpoint is not told; filter the dataset, or"
                    " let a checkpoint or a stage teach"
                )

    def _ask_engines(
        self, log: AnswerLog, todo: Sequence[int], services: EnginesAndRewards, progress: Any
    ) -> None:
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
            answers = pool.answer([self._question(number) for number in todo[start : start + size]], sampling)
            lines = [self._line(answer) for answer in answers]
            tops = [a.top if "text" in line else None for a, line in zip(answers, lines, strict=True)]
            log.append(lines, tops)
            progress.update(len(answers))
            self._check_failed(log)
        if stage.teacher.checkpoint is not None:
            services.close_pool()  # nothing else uses this model, and the student needs the room

    async def _ask_endpoint(
        self, settings: EndpointConfig, log: AnswerLog, todo: Sequence[int], cache: Path, progress: Any
    ) -> None:
        how = self.stage.generation
        if how.top_p < 1:
            settings = settings.model_copy(update={"request": {"top_p": how.top_p} | settings.request})
        numbers = iter(todo)

        async def work(model: CachedModel) -> None:
            for number in numbers:
                question = self._question(number)
                # Seeds of 63 bits are refused by some servers.
                sampling = Sampling(how.temperature, how.max_new_tokens, question.seed % 2**31)
                try:
                    found = await model.ask(question.messages, sampling, lambda completion: completion)
                    answer = SampledAnswer(number, found.text, truncated=found.truncated)
                except RowError as error:
                    answer = SampledAnswer(number, error=str(error))
                log.append([self._line(answer)])
                progress.update()
                self._check_failed(log)

        with ExitStack() as stack:
            answers = stack.enter_context(closing(AnswerCache(cache)))
            try:
                async with Endpoint("teacher", settings) as endpoint, asyncio.TaskGroup() as group:
                    model = CachedModel(endpoint, answers)
                    for _ in range(min(settings.concurrency, len(todo))):
                        group.create_task(work(model))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None

    def _question(self, number: int) -> Question:
        sample, name = self._prompt(number)
        seed = stable_seed(self.config.seed, self.stage.name, name, sample.id, number % self._samples)
        return Question(number, prompt_of(sample), tuple(tool_specs(sample)), seed)

    def _prompt(self, number: int) -> tuple[Sample, str]:
        name, row = self.prompts[number // self._samples]
        return self.datasets[name][row], name

    def _line(self, answer: SampledAnswer) -> dict[str, Any]:
        """What the log keeps of an answer: an `error`, the reason why it is `left_out`, or its `text`."""
        line: dict[str, Any] = {"question": answer.index}
        if answer.error:
            return line | {"error": answer.error}
        if reason := self._unusable(answer):
            return line | {"left_out": reason}
        line["text"] = answer.text
        return line | ({"token_ids": answer.token_ids} if answer.top is not None else {})

    def _unusable(self, answer: SampledAnswer) -> str:
        """Why the student cannot learn from an answer; "" where it can."""
        if answer.truncated:
            return "cut off"
        if not answer.text.strip():
            return "empty"
        try:
            turns = (text_message("user", "?"), text_message("assistant", answer.text))
            self._renderer.render(turns)
        except RenderError:
            return "with control tokens"
        return ""

    def _check_failed(self, log: AnswerLog) -> None:
        if len(log.failed) > MAX_FAILED_SHARE * self._total:
            number = max(log.failed)
            sample, name = self._prompt(number)
            raise TeachingError(
                f"stage {self.stage.name}: {len(log.failed):,} of {self._total:,} prompts have no answer. The"
                f" last is sample {sample.id} of dataset {name}: {log.read(number)['error']}. What was"
                " answered is kept: mend the cause, then go on with --resume"
            )

    def write(self, log: AnswerLog, folder: Path) -> dict[str, Any]:
        """Write the rows of each dataset; what came of the questions.

        Raises:
            TeachingError: If a dataset has no answer that can be used.
        """
        left_out: Counter[str] = Counter()
        answers = 0
        for name in self.datasets:
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
        """The samples of one dataset, and by reason how many are left out (by "" how many are not)."""
        for number in range(self._total):
            if self.prompts[number // self._samples][0] != dataset:
                continue
            line = log.read(number)
            reason = "failed" if "error" in line else line.get("left_out", "")
            counts[reason] += 1
            if reason:
                continue
            sample, _ = self._prompt(number)
            about = {key: line[key] for key in ("token_ids", "shard", "start") if key in line}
            answer = text_message("assistant", line["text"])
            yield dataclasses.replace(
                sample,
                id=f"{sample.id}/{number % self._samples}",
                messages=(*prompt_of(sample), answer),
                chosen=(),
                rejected=(),
                columns=sample.columns | {COLUMN: {"name": self._teacher_name(), **about}},
            )

    def _teacher_name(self) -> str:
        endpoint = self.stage.teacher.endpoint
        return str(self.teacher) if endpoint is None else endpoint.model

    def _file(self, name: str, folder: Path) -> Path:
        """Of a dataset's rows; two datasets may have the same name in different folders."""
        return folder / f"{list(self.datasets).index(name):02}-{Path(name).stem}.jsonl"

    def dataset(self, name: str, folder: Path) -> DatasetConfig:
        """A dataset of the mixture with the teacher's answers."""
        whole = load_dataset_config(name, self.config.base_dir)
        return DatasetConfig(
            name=whole.name,
            description=f"{whole.description} Answered by {self._teacher_name()}.",
            licence=whole.licence,
            source=SourceConfig(path=str(self._file(name, folder))),
        )


def chosen_prompts(
    datasets: dict[str, Dataset], stage: DistillationStage, seed: int
) -> list[tuple[str, int]]:
    """Dataset and row of each prompt: `num_prompts` in the mixture's shares, or every row.

    Raises:
        TeachingError: If a dataset has too few rows for its share.
    """
    if stage.num_prompts is None:
        return [(name, row) for name, dataset in datasets.items() for row in range(len(dataset))]
    mixture = Mixture(datasets, stage.data.mixture, seed)
    drawn = [mixture.index(draw) for draw in range(stage.num_prompts)]
    for name, count in Counter(name for name, _ in drawn).items():
        if count > len(datasets[name]):
            raise TeachingError(
                f"stage {stage.name}: num_prompts = {stage.num_prompts} takes {count:,} prompts of dataset"
                f" {name}, which has {len(datasets[name]):,}; lower it, or raise"
                " generation.samples_per_prompt"
            )
    return drawn


def prompt_of(sample: Sample) -> tuple[Message, ...]:
    """A row's dialogue up to its last user or tool turn; the turns before are not learned from."""
    last = max(place for place, each in enumerate(sample.messages) if each.role in ("user", "tool"))
    return tuple(
        dataclasses.replace(message, train=False) if message.role == "assistant" else message
        for message in sample.messages[: last + 1]
    )


def check_same_tokens(student: Renderer, teacher: Path, config: RunConfig) -> None:
    """Refuse a teacher whose tokens mean something else to the student.

    Raises:
        TeachingError: If their vocabularies differ, or what prompts write of an answer.
    """
    model = config.model.model_copy(update={"family": None})
    other = Renderer.from_config(teacher, model)
    remedy = "remove loss.top_k, to learn from the answers' text, or choose another teacher"
    ours, theirs = student.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        token = min(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        raise TeachingError(
            f"the teacher {teacher} has other tokens than the student: {token!r} is {theirs.get(token)} there"
            f" and {ours.get(token)} here; {remedy}"
        )
    if (here := student.decode([])) != (there := other.decode([])):
        raise TeachingError(
            f"the prompts of the teacher {teacher} begin the answer with {there!r}, the student's with"
            f" {here!r}; {remedy}"
        )
