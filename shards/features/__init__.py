"""Feature sets: arrays computed from the samples of a dataset, one file a shard and array, read by memory mapping."""

from shards.features.contract import (
    ArraySpec,
    FeatureError,
    FeatureSet,
    FeatureSplit,
    ShardFeatures,
    features_folder,
    open_features,
)
from shards.features.writer import Extracted, FeatureWriter

__all__ = [
    "ArraySpec",
    "Extracted",
    "FeatureError",
    "FeatureSet",
    "FeatureSplit",
    "FeatureWriter",
    "ShardFeatures",
    "features_folder",
    "open_features",
]
