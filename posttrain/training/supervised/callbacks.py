"""What happens besides training: figures go to the tracker, and a stage stops where it is to be measured."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.run.metric_names import (
    DATA_LEFT_OUT,
    GRAD_NORM,
    HELD_OUT_LOSS,
    LEARNING_RATE,
    LOSS,
    UPDATE_SKIPPED,
)
from posttrain.run.tracking import Tracker


class TrackerCallback(TrainerCallback):
    """Hands transformers' logs to our tracker.

    Args:
        tracker: The run's tracker.
        stage_name: The stage's name.
        extra: Names of more figures to pass on, besides those that every stage has.
    """

    def __init__(self, tracker: Tracker, stage_name: str, extra: tuple[str, ...] = ()) -> None:
        self._tracker = tracker
        self._stage_name = stage_name
        self._names = (LOSS, GRAD_NORM, LEARNING_RATE, UPDATE_SKIPPED, DATA_LEFT_OUT, *extra)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Log the figures of a step or of a measurement; the summary at the end is left out."""
        if logs and not {LOSS, HELD_OUT_LOSS}.isdisjoint(logs):
            found = {name: logs[name] for name in self._names if name in logs}
            self._tracker.log(self._stage_name, state.global_step, found)


class StopAt(TrainerCallback):
    """Ends training after a step, with a checkpoint from which it can continue as if it had not ended.

    Args:
        step: The optimiser step.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask for a checkpoint and for the end once the step is done."""
        if state.global_step == self._step:
            control.should_save = control.should_training_stop = True
