"""The scenario: one TOML file describes a whole experiment, read by every process.

Units are in the names. Unknown keys, wrong types and impossible ranges raise ``ConfigError`` with the full path of the key.
``scenario.py`` has the whole, ``reading.py`` what makes one of a file; the other modules have its tables, by whose they are.
"""

from hushtune_common.config.air import AirConfig, ClientConfig, EavesdropperConfig, MoveConfig, Position, SecrecyConfig
from hushtune_common.config.codec import CodecConfig, NoiseConfig
from hushtune_common.config.coordinator import (
    AllocatorConfig,
    CoordinatorConfig,
    LimitsConfig,
    StateConfig,
    StragglersConfig,
    TimingConfig,
    UtilityConfig,
)
from hushtune_common.config.learning import ComputeConfig, DataConfig, DpConfig, LoraConfig, ModelConfig, TrainingConfig
from hushtune_common.config.meaning import weight_max
from hushtune_common.config.owner import ExposureConfig, FingerprintConfig, GateConfig, OwnerConfig
from hushtune_common.config.reading import load, parse, to_toml_tree, with_clients
from hushtune_common.config.scenario import Scenario, without_folders, without_seed

__all__ = [
    "AirConfig",
    "AllocatorConfig",
    "ClientConfig",
    "CodecConfig",
    "ComputeConfig",
    "CoordinatorConfig",
    "DataConfig",
    "DpConfig",
    "EavesdropperConfig",
    "ExposureConfig",
    "FingerprintConfig",
    "GateConfig",
    "LimitsConfig",
    "LoraConfig",
    "ModelConfig",
    "MoveConfig",
    "NoiseConfig",
    "OwnerConfig",
    "Position",
    "Scenario",
    "SecrecyConfig",
    "StateConfig",
    "StragglersConfig",
    "TimingConfig",
    "TrainingConfig",
    "UtilityConfig",
    "load",
    "parse",
    "to_toml_tree",
    "weight_max",
    "with_clients",
    "without_folders",
    "without_seed",
]
