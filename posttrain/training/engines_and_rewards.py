"""The engine pool and the reward server of a run, started when first used.

Starting an engine takes half a minute, so one pool serves every stage and evaluation of a run; a new
stage only changes its weights.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from posttrain.config import LoraConfig, OnPolicyRolloutConfig, RolloutConfig, RunConfig, StageConfig
from posttrain.config.lora_targets import reaches_vision
from posttrain.config.model import infer_family
from posttrain.config.stage import ReadingEngines
from posttrain.inference.engine import AdapterSlots, EngineUse
from posttrain.inference.pool import InferencePool
from posttrain.inference.weight_transfer import TransferGroup
from posttrain.inference.weights import CheckpointWeights
from posttrain.inference.worker import EngineSetup
from posttrain.joints import Plugins
from posttrain.preflight.adapters import frozen_by, linear_weights
from posttrain.rollout.play import RolloutPool
from posttrain.rollout.reward_server import start_reward_server
from posttrain.rollout.worker import RewardAccess, RolloutSetup
from posttrain.run.directory import RunDir
from posttrain.run.judging import write_budget
from posttrain.run.placement import Placement


class EnginesAndRewards:
    """Engine pool and reward server of a run; a context manager that ends them.

    Args:
        config: The run's settings.
        run: The run's directory.
        plugins: Rewards and tools.

    Attributes:
        placement: Where engines and learners live.

    Example:
        with EnginesAndRewards(config, run, plugins) as services:
            pool = services.pool_with(checkpoint, config.evaluation_rollout)
    """

    def __init__(self, config: RunConfig, run: RunDir, plugins: Plugins) -> None:
        self._config = config
        self._run = run
        self._plugins = plugins
        self._tasks = [*{use.task.name: use.task for use in config.tasks()}.values()]
        self._stack = ExitStack()
        self.placement = Placement(use_gpu=config.use_gpu, sharing=config.cluster.placement)
        self._rewards: RewardAccess | None = None
        self._pool: RolloutPool | None = None
        self._kind: tuple[RolloutConfig, str] | None = None
        self._serving: Path | None = None
        self._version = 0

    def __enter__(self) -> "EnginesAndRewards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_pool()
        self._stack.close()

    def pool_with(self, checkpoint: Path, rollout: RolloutConfig, origin: str = "") -> RolloutPool:
        """Return the pool, serving a checkpoint's weights; other settings or another model need a new one.

        Args:
            checkpoint: Directory or Hugging Face id of the weights.
            rollout: Settings of engines and lengths.
            origin: Name of the model that the checkpoint is of, if it does not descend from the run's own.
        """
        if self._pool is None or self._kind != (rollout, origin):
            self.close_pool()
            self._pool = self._start_pool(checkpoint, rollout, origin)
            self._kind, self._version = (rollout, origin), 0
        else:
            self._pool.probe()  # an engine that has hung or died since the last use is replaced
            if checkpoint != self._serving:
                self._pool.publish(CheckpointWeights(checkpoint, self.next_version()))
        self._serving = checkpoint
        return self._pool

    @contextmanager
    def reading_pool(
        self, checkpoint: Path, engines: ReadingEngines, top: int, busy_beside: int
    ) -> Iterator[InferencePool]:
        """Serve a teacher's checkpoint for the length of a `with` block, in engines that read.

        Args:
            checkpoint: Directory or Hugging Face id of its weights.
            engines: How it is served.
            top: Number of likeliest tokens that it tells of a place.
            busy_beside: Number of processes that compute at the same time, a core each, without GPUs.
        """
        config, rollout = self._config, engines.rollout
        setup = EngineSetup(
            model=config.model.model_copy(update={"family": infer_family(checkpoint)}),
            checkpoint=checkpoint,
            engine_config=rollout.engine,
            max_length=rollout.max_length,
            use=EngineUse(reads=top),
        )
        places = self.placement.readers(rollout.actors, rollout.engine.tensor_parallel_size)
        pool = InferencePool(
            setup,
            actors=rollout.actors,
            use_gpu=config.use_gpu,
            places=places,
            busy_beside=0 if config.use_gpu else busy_beside,
        )
        try:
            yield pool
        finally:
            pool.close()
            self.placement.release_readers()

    def next_version(self) -> int:
        """Return an unused policy version, for weights that are not those of a checkpoint."""
        self._serving = None
        self._version += 1
        return self._version

    def close_pool(self) -> None:
        """End the engines."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
            self.placement.release()

    def _start_pool(self, checkpoint: Path, rollout: RolloutConfig, origin: str) -> RolloutPool:
        # Another model than the run's own answers questions, which nothing scores.
        tasks = [] if origin else self._tasks
        rewarded = any(task.rewards for task in tasks)
        if rewarded and self._rewards is None:
            self._rewards = self._start_rewards()
        config = self._config
        family = infer_family(checkpoint) if origin else config.model.family
        overlapping = max(
            (stage.busy_beside_engines for stage in config.stages if stage.episodes == rollout), default=0
        )
        setup = RolloutSetup(
            model=config.model.model_copy(update={"family": family}),
            checkpoint=checkpoint,
            engine_config=rollout.engine,
            max_length=rollout.max_length,
            tasks=tasks,
            image_dir=self._run.path / "images",
            load_tools=self._plugins.load_tools,
            load_game=self._plugins.load_game,
            make_environment=self._plugins.make_environment,
            rewards=self._rewards if rewarded else None,
            base_dir=Path(config.base_dir),
            use=self._engine_use(rollout, checkpoint),
            # On a GPU the last bits depend on more than the batch, as they do where weights change in flight.
            lockstep=not (config.use_gpu or overlapping),
        )
        places = self.placement.engines(rollout.actors, rollout.engine.tensor_parallel_size)
        return RolloutPool(
            setup,
            actors=rollout.actors,
            use_gpu=config.use_gpu,
            places=places,
            busy_beside=0 if config.use_gpu else overlapping,
        )

    def _engine_use(self, rollout: RolloutConfig, checkpoint: Path) -> EngineUse:
        """Return what becomes of the engines that start with a checkpoint, beside sampling."""
        shared = self._config.use_gpu and self._config.cluster.placement == "shared"
        use = EngineUse(transfer=TransferGroup.backend_for(self._config.use_gpu, shared), sleeps=shared)
        if not isinstance(rollout, OnPolicyRolloutConfig):
            return use
        use = replace(use, tempered=rollout.temperature != 1)
        stages = [stage for stage in self._config.stages if stage.episodes == rollout]
        rank = max((stage.adapter_rank(self._config.use_gpu) for stage in stages), default=0)
        if not rank:
            return replace(use, on_publish=rollout.on_publish)
        tower = any(self._adapts_vision(stage, checkpoint) for stage in stages)
        adapters = AdapterSlots(rank=rank, resident=rollout.adapter_versions, tower=tower)
        return replace(use, on_publish=rollout.on_publish, adapters=adapters)

    def _adapts_vision(self, stage: StageConfig, checkpoint: Path) -> bool:
        """Tell whether a stage's adapters change what engines see of images."""
        model = self._config.model
        lora: LoraConfig | None = getattr(stage, "lora", None)  # stages that train nothing have none
        if lora is None or (model.family or infer_family(checkpoint)) == "text":
            return False
        linear = linear_weights(checkpoint, sees_images=True)
        return reaches_vision(linear, lora.target_modules, frozen_by(model))

    def _has_judges(self) -> bool:
        """Tell whether any reward asks a judge whose calls are counted."""
        names = {reward.name for task in self._tasks for reward in task.rewards}
        load, base_dir = self._plugins.load_reward, Path(self._config.base_dir)
        return any(load(name, base_dir).budgeted for name in names)

    def _start_rewards(self) -> RewardAccess:
        """Start the reward server."""
        config = self._config
        server, access = start_reward_server(
            self._plugins,
            self._tasks,
            Path(config.base_dir),
            self._run.path / "reward-server.log",
            config.reward_wait_s,
            write_budget(self._run.path, config.judge_budget) if self._has_judges() else None,
        )
        self._stack.callback(server.close)
        return access
