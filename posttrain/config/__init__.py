"""Configs: strict sections, a loader, and errors that teach. Loads neither torch nor Ray."""

from posttrain.config.data import DataConfig, DatasetConfig, SourceConfig
from posttrain.config.distillation import DistillationStage
from posttrain.config.document import Document
from posttrain.config.dpo import DpoStage
from posttrain.config.errors import ConfigError, Problem
from posttrain.config.learning import DrawingStage, LearningStage
from posttrain.config.loader import (
    build_run,
    dataset_names,
    load_dataset_config,
    load_run,
    missing_variable,
    read_run,
    recipe_names,
)
from posttrain.config.lora import LoraConfig
from posttrain.config.model import ClusterConfig, ModelConfig
from posttrain.config.objectives import AlgorithmConfig, Cispo, Grpo, Gspo, ReferenceKl, Sapo
from posttrain.config.on_policy import OnPolicyStage
from posttrain.config.on_policy_distillation import OnPolicyDistillationStage
from posttrain.config.rl import RlStage
from posttrain.config.rollout import EngineConfig, OnPolicyRolloutConfig, RolloutConfig
from posttrain.config.run import RunConfig, Stage
from posttrain.config.sft import LossConfig, SftStage, SupervisedStage
from posttrain.config.stage import StageConfig, TrainingStage
from posttrain.config.tasks import EvalTask, EvaluationConfig, PluginRef, RewardRef, RlTask, TaskConfig
from posttrain.config.tiny_model import TinyModelStage

__all__ = [
    "AlgorithmConfig",
    "Cispo",
    "ClusterConfig",
    "ConfigError",
    "DataConfig",
    "DatasetConfig",
    "DistillationStage",
    "Document",
    "DpoStage",
    "DrawingStage",
    "EngineConfig",
    "EvalTask",
    "EvaluationConfig",
    "Grpo",
    "Gspo",
    "LearningStage",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OnPolicyDistillationStage",
    "OnPolicyRolloutConfig",
    "OnPolicyStage",
    "PluginRef",
    "Problem",
    "ReferenceKl",
    "RewardRef",
    "RlStage",
    "RlTask",
    "RolloutConfig",
    "RunConfig",
    "Sapo",
    "SftStage",
    "SourceConfig",
    "Stage",
    "StageConfig",
    "SupervisedStage",
    "TaskConfig",
    "TinyModelStage",
    "TrainingStage",
    "build_run",
    "dataset_names",
    "load_dataset_config",
    "load_run",
    "missing_variable",
    "read_run",
    "recipe_names",
]
