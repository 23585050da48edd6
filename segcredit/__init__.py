"""segcredit: segment definitions, value estimators and advantage schemes as plug-ins.

The public names are resolved when first used (PEP 562), so that importing a type loads neither
pandas nor transformers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from segcredit import errors as errors
    from segcredit import objective as objective
    from segcredit import register as register
    from segcredit import registry as registry
    from segcredit import rng as rng
    from segcredit.config import RunConfig as RunConfig
    from segcredit.config import load_config as load_config
    from segcredit.credit_audit import audit as audit
    from segcredit.objective.aggregation import Aggregation as Aggregation
    from segcredit.objective.group_statistics import Match as Match
    from segcredit.objective.group_statistics import compared_segments as compared_segments
    from segcredit.objective.group_statistics import group_mean as group_mean
    from segcredit.objective.group_statistics import group_place as group_place
    from segcredit.objective.group_statistics import group_size as group_size
    from segcredit.objective.group_statistics import group_std as group_std
    from segcredit.objective.group_statistics import measured_by_std as measured_by_std
    from segcredit.objective.importance_ratio import Ratio as Ratio
    from segcredit.objective.ratio_clipping import Bound as Bound
    from segcredit.objective.ratio_clipping import Bounded as Bounded
    from segcredit.objective.returns import Clock as Clock
    from segcredit.objective.returns import explained_variance as explained_variance
    from segcredit.objective.returns import lambda_returns as lambda_returns
    from segcredit.objective.sampler_correction import Correction as Correction
    from segcredit.protocols import AdvantageScheme as AdvantageScheme
    from segcredit.protocols import Environment as Environment
    from segcredit.protocols import Policy as Policy
    from segcredit.protocols import PolicySource as PolicySource
    from segcredit.protocols import ProcessReward as ProcessReward
    from segcredit.protocols import Prompt as Prompt
    from segcredit.protocols import PromptStream as PromptStream
    from segcredit.protocols import Reading as Reading
    from segcredit.protocols import Sampler as Sampler
    from segcredit.protocols import Segmenter as Segmenter
    from segcredit.protocols import SegmenterReading as SegmenterReading
    from segcredit.protocols import Simulator as Simulator
    from segcredit.protocols import SupportsAlternatives as SupportsAlternatives
    from segcredit.protocols import SupportsBackbone as SupportsBackbone
    from segcredit.protocols import SupportsLogitGradients as SupportsLogitGradients
    from segcredit.protocols import SupportsResume as SupportsResume
    from segcredit.protocols import SupportsTurns as SupportsTurns
    from segcredit.protocols import Task as Task
    from segcredit.protocols import TextSegmenter as TextSegmenter
    from segcredit.protocols import Transition as Transition
    from segcredit.protocols import ValueEstimator as ValueEstimator
    from segcredit.protocols import Verdict as Verdict
    from segcredit.protocols import capability as capability
    from segcredit.protocols import whole_weights as whole_weights
    from segcredit.records.tables import read_runs as read_runs
    from segcredit.segmentation import Anchor as Anchor
    from segcredit.segmentation import Segmentation as Segmentation
    from segcredit.segmentation import top_batch_fraction as top_batch_fraction
    from segcredit.segmentation import top_fraction as top_fraction
    from segcredit.study.grid import run_grid as run_grid
    from segcredit.study.look.show import show as show
    from segcredit.study.segmenting.cut import segment as segment
    from segcredit.training.loop import train as train
    from segcredit.training.rollouts.simulator import PolicySimulator as PolicySimulator
    from segcredit.types import Advantages as Advantages
    from segcredit.types import Continuations as Continuations
    from segcredit.types import Generation as Generation
    from segcredit.types import RolloutBatch as RolloutBatch
    from segcredit.types import SampledTokens as SampledTokens
    from segcredit.types import SamplingParams as SamplingParams
    from segcredit.types import SegmentValues as SegmentValues
    from segcredit.types import TokenScores as TokenScores
    from segcredit.types import turn_starts as turn_starts

_HOMES = {
    "segcredit.config": ("RunConfig", "load_config"),
    "segcredit.objective.returns": (
        "Clock",
        "explained_variance",
        "lambda_returns",
    ),
    "segcredit.objective": ("Aggregation", "Bound", "Bounded", "Correction", "Ratio"),
    "segcredit.errors": (
        "BusyError",
        "ConfigError",
        "MissingPackageError",
        "PluginError",
        "PolicyError",
        "RecordError",
        "RegistryError",
        "SegcreditError",
        "ShapeError",
        "StorageError",
        "StudyError",
        "TaskError",
        "TrainingError",
    ),
    "segcredit.objective.group_statistics": (
        "Match",
        "compared_segments",
        "group_mean",
        "group_place",
        "group_size",
        "group_std",
        "measured_by_std",
    ),
    "segcredit.training.loop": ("train",),
    "segcredit.training.rollouts.simulator": ("PolicySimulator",),
    "segcredit.protocols": (
        "AdvantageScheme",
        "Environment",
        "Policy",
        "PolicySource",
        "ProcessReward",
        "Prompt",
        "PromptStream",
        "Reading",
        "Sampler",
        "Segmenter",
        "SegmenterReading",
        "Simulator",
        "SupportsAlternatives",
        "SupportsLogitGradients",
        "SupportsBackbone",
        "SupportsResume",
        "SupportsTurns",
        "Task",
        "TextSegmenter",
        "Transition",
        "ValueEstimator",
        "Verdict",
        "capability",
        "whole_weights",
    ),
    "segcredit.segmentation": ("Anchor", "Segmentation", "top_batch_fraction", "top_fraction"),
    "segcredit.credit_audit": ("audit",),
    "segcredit.study.grid": ("run_grid",),
    "segcredit.study.look.show": ("show",),
    "segcredit.study.segmenting.cut": ("segment",),
    "segcredit.records.tables": ("read_runs",),
    "segcredit.types": (
        "Advantages",
        "Continuations",
        "Generation",
        "RolloutBatch",
        "SampledTokens",
        "SamplingParams",
        "SegmentValues",
        "TokenScores",
        "turn_starts",
    ),
}
_MODULES = ("errors", "objective", "register", "registry", "rng", "testing")
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"segcredit.{name}")
    if name == "__version__":
        return importlib.metadata.version("segcredit")
    raise AttributeError(f"module 'segcredit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
