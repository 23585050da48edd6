"""Float32 masters: small steps add up, float32 is left as it was, checkpoints go on exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from checkpoints import tiny_checkpoint
from segcredit import load_config, train
from segcredit.errors import RecordError
from segcredit.training.loop import iterate
from segcredit.training.master_weights import MasterWeights
from segcredit.training.optimizer import Trained, trained
from small import SMALL

STEPS, RATE = 1000, 1e-6


class Tied(nn.Module):
    """An embedding that is the output layer as well, a frozen layer and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4, dtype=dtype)
        self.frozen = nn.Linear(4, 4, bias=False, dtype=dtype).requires_grad_(False)
        self.output = nn.Linear(4, 7, bias=False, dtype=dtype)
        self.output.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output(torch.tanh(self.frozen(self.embedding(ids))))


def made(module: nn.Module, rate: float = 1e-2, clip: float = 1.0) -> Trained[Any]:
    config = load_config("grpo", [*SMALL, "train.weight_decay=0.01"]).train
    return trained(torch.device("cpu"), module, rate, clip, 1, config)


def loss(module: nn.Module, seed: int) -> torch.Tensor:
    ids = torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed))
    return nn.functional.cross_entropy(module(ids).float(), ids.roll(1))


def stepped(found: Trained[Any], seeds: range) -> Trained[Any]:
    for seed in seeds:
        for half in (seed, -seed - 1):  # two micro-batches
            loss(found.module, half).backward()
        nn.utils.clip_grad_norm_(found.parameters, found.gradient_clip)
        found.step()
    return found


def test_steps_of_a_millionth_add_up_and_are_lost_without_masters() -> None:
    def weight() -> nn.Module:
        module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        nn.init.constant_(module.weight, 0.05)
        return module

    with_masters, plain = made(weight(), RATE), weight()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.0)
    for group in with_masters.optimizer.param_groups:
        group["weight_decay"] = 0.0
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    for _ in range(STEPS):
        for module, step in ((with_masters.module, with_masters.step), (plain, optimizer.step)):
            module(one).sum().backward()
            step()
        optimizer.zero_grad()
    start = float(weight().weight.detach())
    assert float(plain.weight.detach()) == start, "the control ought to lose its steps"
    (master,) = with_masters.parameters
    assert float(master.detach()) == pytest.approx(start - STEPS * RATE, rel=1e-4)
    assert torch.equal(with_masters.module.weight, master.to(torch.bfloat16))
    assert float(with_masters.module.weight.detach()) < start


def test_float32_trains_as_without_masters_to_the_bit() -> None:
    found = stepped(made(Tied(torch.float32)), range(20))
    plain = Tied(torch.float32)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01, betas=_betas())
    for seed in range(20):
        for half in (seed, -seed - 1):
            loss(plain, half).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert found.parameters[0] is found.module.embedding.weight
    for name, x in plain.state_dict().items():
        assert torch.equal(x, found.module.state_dict()[name]), name


def _betas() -> tuple[float, float]:
    return load_config("grpo", SMALL).train.betas


def test_tied_embeddings_have_one_master_with_the_gradient_of_both() -> None:
    found, exact = made(Tied()), Tied().float()
    (master,) = found.parameters
    loss(found.module, 1).backward()
    loss(exact, 1).backward()
    assert found.module.embedding.weight.grad is None, "it was handed over, and freed"
    torch.testing.assert_close(master.grad, exact.embedding.weight.grad, atol=0.02, rtol=0.02)
    stepped(found, range(1))
    assert found.module.output.weight is found.module.embedding.weight


def test_a_checkpoint_holds_masters_and_nothing_frozen_and_goes_on_exactly() -> None:
    whole = stepped(made(Tied()), range(12))
    first = stepped(made(Tied()), range(5))
    saved = copy.deepcopy(first.state_dict())
    assert set(saved["module"]) == {"embedding.weight", "output.weight", "count"}
    assert saved["module"]["output.weight"].dtype == torch.float32
    assert not torch.equal(saved["module"]["output.weight"], first.module.output.weight.float()), (
        "masters hold more than the weights"
    )
    second = made(Tied())
    second.load_state_dict(saved)
    assert torch.equal(second.module.embedding.weight, first.module.embedding.weight)
    stepped(second, range(5, 12))
    assert torch.equal(second.parameters[0], whole.parameters[0])
    assert torch.equal(second.module.embedding.weight, whole.module.embedding.weight)


@pytest.mark.parametrize("change", [{"frozen.weight": torch.zeros(4, 4)}, {"output.weight": None}])
def test_a_checkpoint_of_another_module_is_refused(change: dict[str, Any]) -> None:
    found = made(Tied())
    state = found.state_dict()
    state["module"] = {k: x for k, x in (state["module"] | change).items() if x is not None}
    with pytest.raises(RecordError, match=f"differ in '{next(iter(change))}' and 0 more names"):
        found.load_state_dict(state)


def test_copies_of_a_trained_module_hand_over_nothing() -> None:
    found = made(Tied())
    twin = copy.deepcopy(found.module)
    loss(twin, 1).backward()
    assert twin.embedding.weight.grad is not None
    assert found.parameters[0].grad is None


def test_a_run_in_bfloat16_resumes_to_the_bit(tmp_path: Path) -> None:
    """Policy and critic: every master after an interruption is that of the uninterrupted run."""
    folder = tiny_checkpoint(tmp_path / "model", steps=40)
    model = f"policy={{name='hf', model='{folder}', dtype='bfloat16'}}"
    small = [key for key in SMALL if not key.startswith("policy.")]
    config = load_config("ppo", [model, *small, "checkpoint.every=1", "checkpoint.keep=9"])
    train(config, tmp_path / "whole")
    for row in iterate(config, tmp_path / "cut"):
        if row["step"] == 2:
            break
    train(config, tmp_path / "cut", resume=True)
    whole, cut = (
        torch.load(tmp_path / name / "checkpoints" / "step_000004.pt") for name in ("whole", "cut")
    )
    for part in ("policy", "estimator"):
        for name, x in whole[part]["module"].items():
            assert x.dtype == torch.float32, name
            assert torch.equal(x, cut[part]["module"][name]), name
    before = torch.load(tmp_path / "whole" / "checkpoints" / "step_000002.pt")
    name = "model.lm_head.weight"
    assert not torch.equal(before["policy"]["module"][name], whole["policy"]["module"][name])


def test_nothing_to_train_has_no_masters() -> None:
    frozen = Tied().requires_grad_(False)
    assert MasterWeights(frozen).parameters == []
    assert set(made(frozen).state_dict()["module"]) == {"count"}
