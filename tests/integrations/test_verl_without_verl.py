"""The part of the verl integration that needs no verl: what runs there, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch

from segcredit.errors import ConfigError, MissingPackageError
from segcredit.integrations.verl import HostedMethod, register


@pytest.mark.parametrize(
    ("preset", "setting", "way", "sentence"),
    [
        ("grpo", "segmenter=entropy", "registries", "'entropy' reads entropies"),
        ("grpo", "task=pointer", "registries", "several turns, and turns are decided by verl"),
        ("grpo", "environment=python_tool", "trainer", "environment is 'python_tool', and turns"),
        ("grpo", "segmenter=newline", "registries", "'newline' reads text"),
        ("grpo", "loss.imitation=0.1", "registries", "loss.imitation = 0.1"),
        ("grpo", "loss.kl_loss=0.1", "registries", "loss.kl_loss = 0.1"),
        ("grpo", "loss.bound=covariance_penalty", "trainer", "tokens of a whole minibatch"),
        (
            "grpo",
            "loss.bound={name='strayed_rows',inner='covariance_penalty'}",
            "registries",
            "tokens of a whole minibatch",
        ),
        ("grpo", "estimator=critic", "registries", "'critic' reads values"),
        ("grpo", "estimator=monte_carlo", "trainer", "samples continuations"),
        ("grpo", "estimator=greedy", "trainer", "estimator 'greedy': verl has no policy to ask"),
        ("grpo", "estimator={name='critic',network='head'}", "trainer", "reads hidden"),
    ],
)
def test_what_verl_cannot_give_is_a_sentence(
    preset: str, setting: str, way: str, sentence: str
) -> None:
    method = HostedMethod(preset, (setting,))
    assert sentence in str(method.refusal(way))
    assert HostedMethod(preset).refusal(way) is None


def test_a_method_says_what_verl_has_to_do() -> None:
    assert HostedMethod("reinforce_pp").overrides()[2:] == [
        "algorithm.use_kl_in_reward=true",
        "algorithm.kl_penalty=kl",
        "algorithm.kl_ctrl.kl_coef=0.001",
    ]
    critic = HostedMethod("sapo").overrides()
    assert {"trainer.v1.trainer_mode=segcredit", "critic.enable=true"} <= set(critic)
    with pytest.raises(ConfigError, match="verl samples each from its prompt"):
        HostedMethod("spo_tree").overrides()


def test_a_segmenter_never_sees_what_is_not_there() -> None:
    """The registry's functions with zeros for entropies would cut somewhere."""
    method = HostedMethod("grpo", ("segmenter=entropy",))
    with pytest.raises(ConfigError, match="reads entropies"):
        method.advantage(torch.zeros(2, 3), torch.ones(2, 3), index=["a", "a"])


def test_rewards_behind_the_last_action_count(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])
    rewards = torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 0, 3], [0, 0, 1]])
    found, returns = HostedMethod("rloo").advantage(rewards, mask, index=["a", "a", "b", "b"])
    want = torch.tensor([[1.0, 1, 0], [-1, 0, 0], [2, 2, 2], [-2, -2, -2]])
    assert torch.equal(found, want)
    assert torch.equal(returns, want)
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'segcredit\[verl\]'"):
        register("rloo")
