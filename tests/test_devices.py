"""Runs on a device other than the CPU: CUDA where there is any, else the kit's pretended one.

The parts of ``make gpu-check`` that are tests are these, and those of the kit that say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from checkpoints import tiny_checkpoint
from segcredit import load_config, read_runs, registry
from segcredit.config import presets
from segcredit.credit_audit import audit, load_audit_config
from segcredit.errors import ConfigError
from segcredit.objective import Clip, Importance, SegmentRatio, TokenMean, surrogate_loss
from segcredit.objective.returns import advantages, segment_values
from segcredit.protocols import whole_tensor
from segcredit.segmentation import Segmentation
from segcredit.testing import make_rollouts
from segcredit.testing.other_device import PRETENDED, PretendedDevice, other_device
from segcredit.training import loop
from segcredit.training.build import build
from segcredit.training.credit_assignment import collect
from segcredit.training.distributed import fsdp
from segcredit.training.distributed.processes import CPU, Processes
from segcredit.training.optimizer import trained
from segcredit.training.step_rows import tables
from segcredit.training.update import improve
from small import SMALL
from test_every_method import REDUCED

TINY = [
    *SMALL,
    "policy.steps=5",
    "rollouts.prompts=2",
    "rollouts.max_new_tokens=8",
    "rollouts.overlong_buffer=7",  # rewards that differ, of a policy that knows nothing
    "evaluate.prompts=2",
    "train.steps=1",
    # One step of the optimizer, which makes steps of equal size out of gradients that are rounding.
    "train.epochs=1",
    "train.minibatches=1",
    "train.micro_tokens=48",
    "train.value.epochs=1",
    "train.value.pretraining.completions=16",
    "train.value.pretraining.epochs=1",
]
READER = ["estimator.network=reader", "estimator.logprobs=reference", "loss.kl_penalty=0.01"]
LEAN = ["sampler=lean"]
"""Draws the same everywhere, from a generator of the CPU."""
AUDIT = [
    *SMALL,
    *LEAN,
    "audit.prompts=4",
    "audit.completions=2",
    "audit.continuations=0.5",
    "audit.training_steps=1",
    "audit.gradient_samples=8",
    "audit.gradient_batches=2",
    "audit.resamples=20",
    'audit.segmenters=["newline"]',
    'audit.estimators=["measured", "critic"]',
    'audit.advantages=["td"]',
]


def step(method: str, changes: Sequence[str], device: torch.device) -> dict[str, float]:
    """Metrics of a step, with the evaluation before it; its tables are made as well."""
    run = build(load_config(method, [*TINY, *changes]), Processes(device=device))
    row = loop._begin(run, None)
    batch = collect(run, 1)
    assert batch.advantages.per_token.device.type == device.type
    losses = improve(run, batch, 1)
    for state in (run.policy, run.state):
        assert {x.device.type for x in state.parameters} <= {device.type}
    found = tables(run, batch, 1)
    assert {len(column) for column in found["segments"].values()} != {0}
    costs = {"tokens_simulated", "tokens_sampled", "cpu_seconds"}
    return {k: x for k, x in loop._row(run, batch, losses, row, 1, 0.0).items() if k not in costs}


def require_step_of_the_cpu(method: str, changes: Sequence[str]) -> dict[str, float]:
    """Returns the metrics that both have."""
    wanted = step(method, changes, CPU)
    with other_device() as device:
        found = step(method, changes, device)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name
    return found


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("vapo", [*LEAN, *READER]),
        ("vineppo", LEAN),
        ("spo_tree", [*LEAN, "rollouts.branches=[2,2]"]),
    ],
)
def test_a_step_is_that_of_the_cpu(method: str, changes: list[str]) -> None:
    assert require_step_of_the_cpu(method, changes)["gradient_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", presets())
def test_a_step_of_every_method_is_that_of_the_cpu(method: str) -> None:
    require_step_of_the_cpu(method, [*LEAN, *REDUCED.get(method, [])])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["estimator.network=head"], ["estimator.network=trunk"], READER], ids=str
)
def test_a_step_of_every_critic_is_that_of_the_cpu(options: list[str]) -> None:
    require_step_of_the_cpu("vapo", [*LEAN, *options])


@pytest.mark.slow
def test_a_step_in_bfloat16(tmp_path: Path) -> None:
    """The weights are there in bfloat16, and move by masters that are there in float32."""
    folder = tiny_checkpoint(tmp_path / "model")
    model = f"policy={{name='hf', model='{folder}', dtype='bfloat16'}}"
    small = [key for key in TINY if not key.startswith("policy.")]
    config = load_config("ppo", [*small, model, *LEAN, "train.learning_rate=1e-2"])
    with other_device() as device:
        run = build(config, Processes(device=device))
        before = [x.detach().clone() for x in run.policy.parameters]
        improve(run, collect(run, 1), 1)
        kinds = {(x.dtype, x.device.type) for x in run.policy.network.parameters()}
        assert kinds == {(torch.bfloat16, device.type)}
        assert {(x.dtype, x.device.type) for x in before} == {(torch.float32, device.type)}
        pairs = zip(run.policy.parameters, before, strict=True)
        moved = torch.stack([(now.detach() - then).abs().max() for now, then in pairs])
        assert 0 < float(moved.max()) < 0.1


def test_a_run_moves_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that was written there is read here."""
    config = load_config("rloo", [*TINY, *LEAN, "train.steps=2", "checkpoint.every=1"])
    with other_device() as device, monkeypatch.context() as patch:
        patch.setattr(loop, "started_processes", lambda _: Processes(device=device))
        assert next(loop.iterate(config, tmp_path))["step"] == 0
    monkeypatch.setattr(loop, "started_processes", lambda _: Processes())
    rows = [*loop.iterate(config, tmp_path, resume=True)]
    assert [row["step"] for row in rows] == [1, 2]
    assert math.isfinite(rows[-1]["loss"])


def test_fsdp_over_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh of one device: what is sharded trains as what is not, and is whole in its state."""
    # Not on the pretended device, which has no communication.
    place = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
    config = load_config("grpo", TINY).train
    # Two are said, since one is not sharded at all; the mesh has the one that there is.
    real = fsdp.init_device_mesh
    monkeypatch.setattr(fsdp, "init_device_mesh", lambda kind, _: real(kind, (1,)))
    distributed.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        store=distributed.HashStore(),
        rank=0,
        world_size=1,
    )
    try:
        states: list[dict[str, Any]] = []
        for sharded in (True, False):
            torch.manual_seed(0)
            module: Any = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
            module = module.to(place)
            if sharded:
                fsdp.shard(module, Processes(0, 2, place))
            own = trained(place, module, 1e-2, 1.0, 1, config)
            for number in range(3):
                module(torch.full((5, 4), float(number), device=place)).square().mean().backward()
                whole_tensor(torch.nn.utils.clip_grad_norm_(own.parameters, 1.0))
                own.step()
            states.append(fsdp.gathered(own.state_dict()["module"]))
    finally:
        distributed.destroy_process_group()
    for name, value in states[1].items():
        assert torch.allclose(states[0][name].cpu(), value.cpu(), atol=1e-6), name


@pytest.mark.slow
def test_an_audit_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def audited(device: torch.device) -> Any:
        found = Processes(device=device)
        monkeypatch.setattr("segcredit.training.build.started_processes", lambda _: found)
        path = audit(load_audit_config("sapo", AUDIT), tmp_path / device.type)
        return read_runs(path).audit

    wanted = audited(CPU)
    with other_device() as device:
        found = audited(device)
    keys = ["segmenter", "estimator", "advantage", "section", "metric", "at"]
    assert found[keys].equals(wanted[keys])
    numbers = wanted["section"] != "cost"
    values = (table["value"][numbers].to_numpy(float) for table in (found, wanted))
    assert next(values) == pytest.approx(next(values), rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_not_there_is_a_sentence() -> None:
    config = load_config("grpo", ["train.device=cuda"])
    with pytest.raises(ConfigError, match=r"train.device is 'cuda', but .* finds no CUDA here"):
        build(config)


def test_a_device_without_float64_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = torch.device("mps")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: mps)
    assert Processes.started().device == CPU


REFUSED = {
    "two devices": lambda x: x + torch.ones(3),
    "an index there of a tensor here": lambda x: torch.ones(3)[x.long()],
    "a generator of the CPU": lambda x: x.bernoulli_(0.5, generator=torch.default_generator),
    "a matrix product of integers": lambda x: x.long() @ x.long(),
    "NumPy": lambda x: x.numpy(),
}
ALLOWED = {
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "an index here of a tensor there": lambda x: x[torch.tensor([0, 1])],
    "a copy": lambda x: x + torch.ones(3).to(x),
    "a copy in place": lambda x: x.clone().copy_(torch.ones(3)),
    "a tensor like it": lambda x: torch.where(x > 0, x, x.new_zeros(3)).cumsum(0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_another_device_refuses(case: str) -> None:
    with other_device() as device:
        x = torch.ones(3, device=device)
        with pytest.raises((RuntimeError, TypeError)):
            REFUSED[case](x)


@pytest.mark.parametrize("case", ALLOWED)
def test_what_another_device_allows(case: str) -> None:
    with other_device() as device:
        found = ALLOWED[case](torch.ones(3, device=device))
        assert found.device == device
        assert found.tolist() == ALLOWED[case](torch.ones(3)).tolist()


def test_waits_are_told_by_their_lines() -> None:
    with PretendedDevice() as mode:
        x = torch.ones(3, device=PRETENDED)
        assert bool((x * 2).sum() > 1)
        x[x > 0] += 1
        y = x.cpu()
    assert y.tolist() == [2.0, 2.0, 2.0]
    operations = ["_local_scalar_dense", "index.Tensor", "index_put_", "_to_copy"]
    assert len(mode.waits) == len(operations)
    for wait, operation in zip(mode.waits, operations, strict=True):
        assert wait.startswith(f"{__file__}:")
        assert operation in wait


def test_credit_and_loss_wait_for_the_device_once_for_the_width() -> None:
    """What ``segmentation`` promises: only building segments reads from the device."""
    with PretendedDevice() as mode:
        rollouts = make_rollouts(token_values=True).to(PRETENDED)
        mask_BT = rollouts.action_mask
        mode.waits.clear()
        cut = Segmentation.from_ends(rollouts.entropies > 0.5, mask_BT)
        assert len(mode.waits) <= 1, mode.waits
        mode.waits.clear()
        values = segment_values(rollouts, cut, rollouts.token_values.gather(1, cut.anchors()))
        scheme = registry.advantages.build("whitened", inner={"name": "gae", "lam": 0.9})
        credit = advantages(cut, values, scheme(values))
        logprobs_BT = (rollouts.logprobs - 0.01).requires_grad_()
        loss, _ = surrogate_loss(
            logprobs_BT,
            rollouts.logprobs,
            credit.per_token,
            mask_BT,
            cut,
            surrogate=Importance(SegmentRatio(), Clip(0.2, 0.28, dual=3.0)),
            aggregation=TokenMean(),
        )
        loss.backward()
        assert mode.waits == []
