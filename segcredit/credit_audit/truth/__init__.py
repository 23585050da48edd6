"""The value of every state of a frozen policy's completions: what an audit holds credit against.

How values are measured is in ``measure``; how they are stored, and go on after an interruption, in
``store``; the toy policy's exact ones are in ``exact``.
"""

from segcredit.credit_audit.truth.exact import exact_truth as exact_truth
from segcredit.credit_audit.truth.measure import MeasuredValues as MeasuredValues
from segcredit.credit_audit.truth.measure import measure as measure
from segcredit.credit_audit.truth.store import StoredTruth as StoredTruth
from segcredit.credit_audit.truth.store import TruthProgress as TruthProgress
from segcredit.credit_audit.truth.store import load_truth as load_truth
from segcredit.credit_audit.truth.store import measure_truth as measure_truth
from segcredit.credit_audit.truth.valued_completions import ValuedCompletions as ValuedCompletions
