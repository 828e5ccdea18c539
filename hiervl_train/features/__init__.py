"""Extraction of features: from the samples of a dataset to a feature set, by our towers or by other models.

All that the entries `preprocessing/extract_features.py` and `dense_features.py` use of this package is named here.
"""

from hiervl_train.collectives import all_true
from hiervl_train.distributed import DistributedContext, distributed_context
from hiervl_train.features.build import build_extractor
from hiervl_train.features.config import ExtractConfig, ExtractorConfig
from hiervl_train.features.dense import VideoPart, WholeVideo, dense_features
from hiervl_train.features.extract import ShardDone
from hiervl_train.features.extractor import Extractor, ExtractorError
from hiervl_train.features.run import (
    Extraction,
    Outcome,
    extract_on_ranks,
    extract_task,
    identity,
    open_extraction,
    tasks_of,
)

__all__ = [
    "DistributedContext",
    "ExtractConfig",
    "Extraction",
    "Extractor",
    "ExtractorConfig",
    "ExtractorError",
    "Outcome",
    "ShardDone",
    "VideoPart",
    "WholeVideo",
    "all_true",
    "build_extractor",
    "dense_features",
    "distributed_context",
    "extract_on_ranks",
    "extract_task",
    "identity",
    "open_extraction",
    "tasks_of",
]
