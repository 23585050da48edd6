"""Summaries, comparisons and learning curves of a study's runs over seeds, with intervals.

    runs = segcredit.read_runs("runs/segmenters")
    summarise(runs, ["segmenter"], "accuracy")
    compare(runs, ["segmenter"], "accuracy", baseline="whole")["finding"]
    learning_areas(runs, ["segmenter"], "accuracy", per="tokens_sampled")

Formulas, sources, and how often each interval covers what it should: docs/explain/statistics.md.
"""

from segcredit.study.statistics.comparison import compare, headline
from segcredit.study.statistics.improvement import probability_of_improvement
from segcredit.study.statistics.intervals import (
    FEWEST,
    bootstrap_interval,
    bootstrap_intervals,
    stated_ends,
    student_interval,
    student_intervals,
)
from segcredit.study.statistics.paired import (
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    student_p,
)
from segcredit.study.statistics.run_values import known_metric, limits_of, metrics_of, run_values
from segcredit.study.statistics.sides import differing_settings, two_sides
from segcredit.study.statistics.stratified import (
    IntervalKind,
    interquartile_mean,
    require_statistic,
    stratified_bootstrap,
    stratified_student,
)
from segcredit.study.statistics.summary import learning_areas, summarise

__all__ = [
    "FEWEST",
    "IntervalKind",
    "bootstrap_interval",
    "bootstrap_intervals",
    "compare",
    "differing_settings",
    "headline",
    "holm",
    "interquartile_mean",
    "known_metric",
    "learning_areas",
    "limits_of",
    "metrics_of",
    "probability_of_improvement",
    "require_statistic",
    "run_values",
    "seeds_needed",
    "sign_flip_p",
    "smallest_p",
    "stated_ends",
    "stratified_bootstrap",
    "stratified_student",
    "student_interval",
    "student_intervals",
    "student_p",
    "summarise",
    "two_sides",
]
