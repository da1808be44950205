"""Which model a stage learns from, whether it can, and what of its own model it trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.inference.pool import InferencePool, collect
from posttrain.inference.reading import ReadEpisodes, Reading
from posttrain.models.lora import is_adapter
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.same_tokens import image_difference, token_difference
from posttrain.training.on_policy.teacher import TeacherError, shares_base
from posttrain.training.run_at_work import RunAtWork, standalone
from posttrain.types import Trajectory


def find_teacher(work: RunAtWork, stage: OnPolicyStage, origin: Path) -> Path | None:
    """Find a stage's teacher: whole weights, or in learners of LoRA an adapter of the student's own base.

    Args:
        work: The run.
        stage: The stage.
        origin: The student's first weights.

    Returns:
        Where the teacher is; None where there is none.

    Raises:
        TeacherError: If the teacher has other tokens than the student, or cuts images otherwise.
    """
    name = stage.teacher_name
    if name is None:
        return None
    whole = work.checkpoints.get(name)
    given = Path(name) if whole is None else work.run.newest_checkpoint(name) or whole
    beside = stage.lora is not None and not stage.teacher_top_k
    own = beside and is_adapter(given) and shares_base(given, origin)
    if whole is None:
        whole = standalone(given, work.run.path / stage.name / "teacher" / "checkpoint-0")
    any_family = work.config.model.model_copy(update={"family": None})
    renderers = [Renderer.from_config(path, any_family) for path in (origin, whole)]
    if difference := token_difference(*renderers) or image_difference(*renderers):
        raise TeacherError(
            f"stage {stage.name}: {stage.teacher_key}: the teacher {name} {difference}. Its distribution"
            " cannot be learned: choose a teacher of the student's family, or stage: distillation, which"
            " learns from texts"
        )
    return given if own else whole


def trained_model(model: ModelConfig, stage: OnPolicyStage, checkpoint: Path) -> ModelConfig:
    """Return how a stage loads its model: a text_only one with the whole vision side frozen."""
    if not stage.language_model_alone or model.family_of(checkpoint) == "text":
        return model
    return model.model_copy(update={"freeze_vision_tower": True, "freeze_merger": True})


@contextmanager
def reading_pool(
    work: RunAtWork, stage: OnPolicyStage, teacher: Path | None
) -> Iterator[InferencePool | None]:
    """Have a stage's teacher served for the length of a `with` block; yield None if it is in the learners.

    Args:
        work: The run.
        stage: The stage.
        teacher: The teacher's whole weights.
    """
    engines = stage.reading_engines
    if engines is None:
        yield None
        return
    assert teacher is not None
    busy = stage.busy_beside_engines
    with work.services.reading_pool(teacher, engines, stage.teacher_top_k, busy) as pool:
        yield pool


def read_sequences(pool: InferencePool | None, sequences: Sequence[Trajectory], top: int) -> list[Reading]:
    """Return what a teacher in engines says of a few sequences; nothing if it is in the learners."""
    if pool is None or not sequences:
        return []
    [readings] = collect(pool.submit([ReadEpisodes(sequences, top)]))
    return readings
