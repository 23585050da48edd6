"""Pure torch maths of the objective: returns, policy loss, ratio clipping, aggregation."""

from segcredit.objective.policy_loss import kl_divergence as kl_divergence
from segcredit.objective.policy_loss import surrogate_loss as surrogate_loss
