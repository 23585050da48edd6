"""Pure torch maths of the objective: returns, policy loss, ratio clipping, aggregation."""

from segcredit.objective.aggregation import Aggregation as Aggregation
from segcredit.objective.aggregation import SequenceMeanTokenMean as SequenceMeanTokenMean
from segcredit.objective.aggregation import SequenceMeanTokenNorm as SequenceMeanTokenNorm
from segcredit.objective.aggregation import SequenceMeanTokenSum as SequenceMeanTokenSum
from segcredit.objective.aggregation import SequenceSumNorm as SequenceSumNorm
from segcredit.objective.aggregation import TokenMean as TokenMean
from segcredit.objective.importance_ratio import Importance as Importance
from segcredit.objective.importance_ratio import Ratio as Ratio
from segcredit.objective.importance_ratio import Reinforce as Reinforce
from segcredit.objective.importance_ratio import SegmentRatio as SegmentRatio
from segcredit.objective.importance_ratio import SequenceRatio as SequenceRatio
from segcredit.objective.importance_ratio import Surrogate as Surrogate
from segcredit.objective.importance_ratio import TokenRatio as TokenRatio
from segcredit.objective.policy_loss import kl_divergence as kl_divergence
from segcredit.objective.policy_loss import surrogate_loss as surrogate_loss
from segcredit.objective.ratio_clipping import Bound as Bound
from segcredit.objective.ratio_clipping import Bounded as Bounded
from segcredit.objective.ratio_clipping import Clip as Clip
from segcredit.objective.ratio_clipping import LogClip as LogClip
from segcredit.objective.ratio_clipping import SoftGate as SoftGate
from segcredit.objective.ratio_clipping import TruncatedIS as TruncatedIS
from segcredit.objective.sampler_correction import Corrected as Corrected
from segcredit.objective.sampler_correction import Correction as Correction
from segcredit.objective.sampler_correction import Mask as Mask
from segcredit.objective.sampler_correction import Truncate as Truncate
