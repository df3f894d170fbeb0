"""The language that all packages share: frozen, validated values without torch."""

from robuq.config.ampn import Allocator, AmpnConfig, Budget, Measure, SensitivityConfig, Weighting
from robuq.config.base import Config, ConfigError, did_you_mean
from robuq.config.data import DataConfig
from robuq.config.evaluation import EvalConfig, FeatureConfig, LossConfig, SampleConfig
from robuq.config.model import MODEL_PRESETS, ModelConfig, model_preset
from robuq.config.quant import (
    BLOCK_ROLES,
    EMBEDDING_MODULES,
    FINAL_MODULES,
    ROLES,
    ActQuant,
    BitAllocation,
    LowRank,
    PrecisionMap,
    QuantSpec,
    Transform,
    WeightQuant,
    decision_name,
    display_label,
    module_names,
    resolve_specs,
)
from robuq.config.run import RunConfig
from robuq.config.search import Objectives, Rung, SamplerName, SearchConfig, SpaceName
from robuq.config.train import CalibrationConfig, DiffusionConfig, TrainConfig

__all__ = [
    "BLOCK_ROLES",
    "EMBEDDING_MODULES",
    "FINAL_MODULES",
    "MODEL_PRESETS",
    "ROLES",
    "ActQuant",
    "Allocator",
    "AmpnConfig",
    "BitAllocation",
    "Budget",
    "CalibrationConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DiffusionConfig",
    "EvalConfig",
    "FeatureConfig",
    "LossConfig",
    "LowRank",
    "Measure",
    "ModelConfig",
    "Objectives",
    "PrecisionMap",
    "QuantSpec",
    "RunConfig",
    "Rung",
    "SampleConfig",
    "SamplerName",
    "SearchConfig",
    "SensitivityConfig",
    "SpaceName",
    "TrainConfig",
    "Transform",
    "WeightQuant",
    "Weighting",
    "decision_name",
    "did_you_mean",
    "display_label",
    "model_preset",
    "module_names",
    "resolve_specs",
]
