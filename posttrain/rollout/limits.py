"""How long episodes may get, and how they are sampled."""

from dataclasses import dataclass

from posttrain.config import RolloutConfig, TaskConfig


@dataclass(frozen=True)
class Limits:
    """How long episodes may get, and how they are sampled.

    Attributes:
        max_new_tokens: Most tokens of one turn.
        max_length: Most tokens of an episode: prompt, turns and observations together.
        temperature: Sampling temperature: 1.0 in training, 0.0 for greedy decoding.
    """

    max_new_tokens: int
    max_length: int
    temperature: float = 1.0

    @classmethod
    def of_task(cls, task: TaskConfig, rollout: RolloutConfig, temperature: float = 1.0) -> "Limits":
        """Return the limits of a task's episodes within those of a rollout."""
        return cls(*task.lengths_in(rollout), temperature)

    def leave_room(self, prompt_tokens: int) -> bool:
        """Tell whether an answer to a prompt of so many tokens can be sampled."""
        return prompt_tokens < self.max_length
