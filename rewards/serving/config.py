"""What a reward server serves and what its clients may ask of it."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from posttrain.reward_spec import RewardSpec
from rewards.budget import Budget, beside
from rewards.sdk import RewardError

#: Environment variable of the bearer token that a server asks for and its clients send.
TOKEN_VARIABLE = "POSTTRAIN_REWARD_TOKEN"  # noqa: S105
#: Environment variable of the process id with which a server started for a run is to end.
PARENT_VARIABLE = "POSTTRAIN_REWARD_PARENT"


class ServedReward(BaseModel):
    """A reward, and parameters that clients cannot set: the endpoint of a judge, say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    params: dict[str, object] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class ServerConfig(BaseModel):
    """A reward server's settings; the file of `posttrain rewards serve --config` has these keys.

    Attributes:
        rewards: What is served, each by name or as `{name, params}`.
        base_dir: Folder against which file references are resolved.
        image_roots: Folders below which images may be named by reference.
        workers: Processes that score; None for one a core, up to 16.
        deadline_s: Seconds that one call may take where its reward declares no limit of its own.
        queued: Samples that may be waiting or under way; beyond it, requests are answered 429.
        body_bytes: Size of a request.
        read_s: Seconds that a client may take to send its request.
        judge_budget: What judges may spend, over all replicas that share its ledger; None for no limit.

    Example:
        ServerConfig(rewards=["math", {"name": "judge", "params": {"model": "Qwen3-VL-32B"}}])
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rewards: list[ServedReward] = Field(min_length=1)
    base_dir: Path | None = None
    image_roots: list[Path] = Field(default_factory=list)
    workers: int | None = Field(default=None, ge=1)
    deadline_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    queued: int = Field(default=4096, ge=1)
    body_bytes: int = Field(default=64 << 20, ge=1)
    read_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    judge_budget: Budget | None = None

    @field_validator("rewards")
    @classmethod
    def _once_each(cls, rewards: list[ServedReward]) -> list[ServedReward]:
        names = [reward.name for reward in rewards]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{repeated!r} is listed more than once; list it once")
        return rewards

    @property
    def references(self) -> list[str]:
        """The names of the rewards."""
        return [reward.name for reward in self.rewards]

    @property
    def specs(self) -> list[RewardSpec]:
        """The rewards with the parameters that are fixed."""
        return [RewardSpec(reward.name, params=reward.params) for reward in self.rewards]


def read_server_config(path: Path) -> ServerConfig:
    """Read a YAML file; its relative folders start where it lies.

    Raises:
        RewardError: Naming the file, the key and the reason.
    """
    try:
        row = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = ServerConfig.model_validate(row)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RewardError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(ServerConfig.model_fields)
        raise RewardError(f"{path}: {key}: {first['msg']} (keys: {known})") from None
    budget = config.judge_budget
    return config.model_copy(
        update={
            "judge_budget": budget and beside(budget, path.parent),
            "base_dir": path.parent / (config.base_dir or "."),
            "image_roots": [path.parent / root for root in config.image_roots],
        }
    )
