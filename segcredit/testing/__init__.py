"""The conformance kit for plug-in authors, and what tests are built from.

from segcredit.testing import check_segmenter, parametrize_with_checks

check_segmenter(MySegmenter())                  # raises PluginError with the broken rule

@parametrize_with_checks([MySegmenter(), MyEstimator()])
def test_contract(check):                       # one named test a rule
    check()
"""

from segcredit.testing.checks import (
    advantage_checks,
    check_advantage,
    check_environment,
    check_estimator,
    check_loss,
    check_policy,
    check_process_reward,
    check_sampler,
    check_segmenter,
    check_task,
    environment_checks,
    estimator_checks,
    loss_checks,
    parametrize_with_checks,
    policy_checks,
    process_reward_checks,
    sampler_checks,
    segmenter_checks,
    task_checks,
)
from segcredit.testing.rollouts import (
    ALPHABET,
    END_ID,
    PAD_ID,
    change_from,
    make_rollouts,
    pad_rollouts,
    random_text,
)
from segcredit.testing.toy import ToyPolicy, ToySimulator, toy_rollouts

__all__ = [
    "ALPHABET",
    "END_ID",
    "PAD_ID",
    "ToyPolicy",
    "ToySimulator",
    "advantage_checks",
    "change_from",
    "check_advantage",
    "check_environment",
    "check_estimator",
    "check_loss",
    "check_policy",
    "check_process_reward",
    "check_sampler",
    "check_segmenter",
    "check_task",
    "environment_checks",
    "estimator_checks",
    "loss_checks",
    "make_rollouts",
    "pad_rollouts",
    "parametrize_with_checks",
    "policy_checks",
    "process_reward_checks",
    "random_text",
    "sampler_checks",
    "segmenter_checks",
    "task_checks",
    "toy_rollouts",
]
