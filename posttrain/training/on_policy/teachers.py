"""Which model a stage learns from, whether it can, and what of its own model it trains."""

from pathlib import Path

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.models.lora import is_adapter
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.same_tokens import image_difference, token_difference
from posttrain.training.on_policy.teacher import TeacherError, shares_base
from posttrain.training.run_at_work import RunAtWork, standalone


def find_teacher(work: RunAtWork, stage: OnPolicyStage, origin: Path) -> Path | None:
    """Find a stage's teacher: whole weights, or under LoRA an adapter of the student's own base.

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
    own = stage.lora is not None and is_adapter(given) and shares_base(given, origin)
    if whole is None:
        whole = standalone(given, work.run.path / stage.name / "teacher" / "checkpoint-0")
    any_family = work.config.model.model_copy(update={"family": None})
    renderers = [Renderer.from_config(path, any_family) for path in (origin, whole)]
    if difference := token_difference(*renderers) or image_difference(*renderers):
        raise TeacherError(
            f"stage {stage.name}: the teacher {name} {difference}. Its distribution cannot be learned:"
            " choose a teacher of the student's family, or stage: distillation, which learns from texts"
        )
    return given if own else whole


def trained_model(model: ModelConfig, stage: OnPolicyStage, checkpoint: Path) -> ModelConfig:
    """Return how a stage loads its model: a text_only one with the whole vision side frozen."""
    if not stage.language_model_alone or model.family_of(checkpoint) == "text":
        return model
    return model.model_copy(update={"freeze_vision_tower": True, "freeze_merger": True})
