"""Scoring in pieces against all logits at once: values, gradients, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segcredit.policy.logprobs import _plain, token_distributions

WORDS = 23
UNITS = 6
SUPPRESSED = torch.tensor([0, 4, 22])
NONE = torch.tensor([], dtype=torch.long)


def _given(
    rows: int = 11, dtype: torch.dtype = torch.float32, bias: bool = True
) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(5)
    output = nn.Linear(UNITS, WORDS, bias=bias).to(dtype)
    with torch.no_grad():
        output.weight.mul_(4)
    states = (2 * torch.randn(rows, UNITS)).to(torch.promote_types(dtype, torch.float32))
    return output, states.requires_grad_(), torch.randint(5, 20, (rows,))


def _slow(output: Any, states: Tensor, ids: Tensor, temperature: float, never: Tensor) -> Any:
    """A row at a time, by the definitions, over the ids that are left."""
    left = [word for word in range(WORDS) if word not in never.tolist()]
    found = []
    for state, own in zip(states, ids.tolist(), strict=True):
        logits = output(state.to(output.weight.dtype)).to(states.dtype)[left] / temperature
        shares = logits.exp() / logits.exp().sum()
        found.append((shares[left.index(own)].log(), -(shares * shares.log()).sum()))
    return tuple(map(torch.stack, zip(*found, strict=True)))


def _gradients(output: nn.Linear, states: Tensor, found: Any, entropies: float) -> list[Tensor]:
    """Of a loss that weighs each token otherwise."""
    weights = torch.linspace(-1, 2, len(states), dtype=found[0].dtype)
    loss = (weights * found[0]).sum() + entropies * (weights.flip(0) * found[1]).sum()
    return list(torch.autograd.grad(loss, [states, *output.parameters()]))


@pytest.mark.parametrize("entropies", [0.0, 0.7])
@pytest.mark.parametrize("elements", [1, 2 * WORDS, 3 * WORDS + 1, 10**6])
@pytest.mark.parametrize("never", [SUPPRESSED, NONE], ids=["suppressed", "all"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_are_those_of_the_definitions(
    temperature: float, never: Tensor, elements: int, entropies: float
) -> None:
    given = _given()
    found = token_distributions(
        *given, temperature=temperature, suppressed_X=never, elements=elements
    )
    expected = _slow(*given, temperature, never)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        _gradients(*given[:2], found, entropies),
        _gradients(*given[:2], expected, entropies),
        atol=2e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("never", [SUPPRESSED, NONE], ids=["suppressed", "all"])
def test_gradients_agree_with_finite_differences(never: Tensor) -> None:
    output, states, ids = _given(5, torch.float64)

    def figures(states: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        made = nn.Linear(UNITS, WORDS)
        made.__dict__["_parameters"] = {"weight": weight, "bias": bias}
        return token_distributions(
            made, states, ids, temperature=0.7, suppressed_X=never, elements=2 * WORDS
        )

    assert torch.autograd.gradcheck(figures, (states, output.weight, output.bias))


@pytest.mark.parametrize("entropies", [0.0, 0.7])
def test_weights_in_bfloat16_are_used_as_the_plain_way_uses_them(entropies: float) -> None:
    given = _given(40, torch.bfloat16)
    found = token_distributions(*given, temperature=0.9, suppressed_X=SUPPRESSED, elements=100)
    expected = _plain(*given, 0.9, SUPPRESSED)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    mine, theirs = (_gradients(*given[:2], each, entropies) for each in (found, expected))
    exact = nn.Linear(UNITS, WORDS).to(torch.float32)
    exact.load_state_dict({name: x.float() for name, x in given[0].state_dict().items()})
    truth = _gradients(exact, given[1], _plain(exact, *given[1:], 0.9, SUPPRESSED), entropies)
    for ours, plain, true in zip(mine, theirs, truth, strict=True):
        assert ours.dtype == plain.dtype
        far = (plain.float() - true).abs().max()
        assert (ours.float() - true).abs().max() <= 1.5 * far + 1e-6


def test_a_layer_without_bias_a_frozen_one_and_no_tokens() -> None:
    output, states, ids = _given(bias=False)
    options: dict[str, Any] = {"temperature": 1.0, "suppressed_X": SUPPRESSED}
    found = token_distributions(output, states, ids, **options)
    torch.testing.assert_close(found, _plain(output, states, ids, 1.0, SUPPRESSED))
    found[0].sum().backward()
    assert output.weight.grad is not None
    output.requires_grad_(False).weight.grad = None
    states.grad = None
    token_distributions(output, states, ids, **options)[1].sum().backward()
    assert output.weight.grad is None
    assert states.grad is not None
    with torch.no_grad():
        assert not token_distributions(output, states, ids, **options)[0].requires_grad
    none = token_distributions(output, states[:0], ids[:0], **options)
    assert none[0].shape == none[1].shape == (0,)


class _Adapted(nn.Linear):
    """As adapters do: more than the weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


@pytest.mark.parametrize("rows", [11, 0])
def test_other_layers_are_called_themselves(rows: int) -> None:
    output, states, ids = _given(rows)
    adapted = _Adapted(UNITS, WORDS)
    adapted.load_state_dict(output.state_dict())
    options: dict[str, Any] = {"temperature": 0.8, "suppressed_X": SUPPRESSED}
    found = token_distributions(adapted, states, ids, **options, elements=2 * WORDS)
    expected = _plain(adapted, states, ids, 0.8, SUPPRESSED)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        _gradients(adapted, states, found, 0.7),
        _gradients(adapted, states, expected, 0.7),
        atol=2e-5,
        rtol=1e-5,
    )


def test_a_suppressed_token_has_no_probability_and_no_gradient_of_its_own() -> None:
    output, states, ids = _given()
    ids[3] = 4
    options: dict[str, Any] = {"temperature": 1.0, "suppressed_X": SUPPRESSED}
    logprobs, entropies = token_distributions(output, states, ids, **options)
    assert logprobs[3] == -torch.inf
    assert logprobs.isfinite().sum() == 10
    (logprobs[torch.arange(11) != 3].sum() + entropies.sum()).backward()
    assert output.weight.grad is not None
    assert output.weight.grad.isfinite().all()
    assert not output.weight.grad[SUPPRESSED].any()


def test_large_logits_do_not_overflow() -> None:
    output, states, ids = _given()
    with torch.no_grad():
        output.weight.mul_(300)
    found = token_distributions(
        output, states, ids, temperature=1.0, suppressed_X=SUPPRESSED, elements=50
    )
    expected = _plain(output, states, ids, 1.0, SUPPRESSED)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient in _gradients(output, states, found, 0.3):
        assert gradient.isfinite().all()


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple) else (found,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return found


@pytest.mark.parametrize("kind", [nn.Linear, _Adapted])
def test_all_logits_are_never_held(kind: Any) -> None:
    output, states, ids = kind(UNITS, WORDS), *_given(200)[1:]
    options: dict[str, Any] = {"temperature": 0.8, "suppressed_X": SUPPRESSED}
    with _Largest() as largest:
        found = token_distributions(output, states, ids, **options, elements=20 * WORDS)
        (found[0].sum() + found[1].sum()).backward()
    assert largest.elements < 200 * WORDS / 2
    with _Largest() as largest:
        _plain(output, states, ids, 0.8, SUPPRESSED)
    assert largest.elements >= 200 * WORDS
