"""A learned value function: a network, its objective, and the states that it is trained at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from segcredit import (
    Anchor,
    Clock,
    Policy,
    Reading,
    RolloutBatch,
    Segmentation,
    SegmentValues,
    Simulator,
    SupportsBackbone,
    TokenScores,
    ValueEstimator,
    capability,
    lambda_returns,
)

_TOKEN_WIDTH = 16
_LEAST_LOGPROB = -5.0
"""Log-probs are read down to here: what is rarer is as surprising."""
_SPARE_BINS = 3
"""Bins beyond each end of the range, so that a target at an end keeps its mean."""
_SMOOTHING = 0.75
"""Standard deviation of a target's distribution, in bins."""


class BackboneCritic(nn.Module):
    """A copy of the policy's backbone with a linear output that begins at 0."""

    def __init__(self, policy: SupportsBackbone, outputs: int) -> None:
        super().__init__()
        self.backbone = policy.backbone()
        self.output = _zero_output(policy.hidden_size, outputs)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (B,T) the output before each token, or (B,T,K) if there are several."""
        # A view could be changed in place, which FSDP2 warns of.
        return self.output(self.backbone(rollouts)).squeeze(-1).clone()


class HeadCritic(nn.Module):
    """A small network on the policy's own hidden states; no gradient reaches the policy."""

    def __init__(self, policy: Policy, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(policy.hidden_size)
        self.hidden = nn.Linear(policy.hidden_size, width)
        self.output = _zero_output(width, outputs)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (B,T) the output before each token, or (B,T,K) if there are several."""
        hidden_BTH = cast(TokenScores, scores).hidden.detach()
        states_BTH = self.norm(hidden_BTH.to(self.output.weight.dtype))
        return self.output(torch.relu(self.hidden(states_BTH))).squeeze(-1)


class Reader(nn.Module):
    """A recurrent network that reads a completion along the states of a policy.

    Before token t it has seen, of every token so far: the policy's state before it, the token
    (by its id modulo ``tokens``), its log-prob, and how uncertain it was; of t the state and the
    entropy that it is about to be drawn with. Tokens in holes and padding are read as nothing.
    """

    def __init__(
        self,
        policy: Policy,
        width: int,
        outputs: int,
        *,
        states: Literal["reference", "live"],
        logprobs: Literal["reference", "live", "none"],
        tokens: int,
        group_mean: bool,
    ) -> None:
        super().__init__()
        self.states, self.logprobs, self.group_mean = states, logprobs, group_mean
        self.norm = nn.LayerNorm(policy.hidden_size)
        self.token = nn.Embedding(tokens, _TOKEN_WIDTH) if tokens else None
        inputs = 2 * policy.hidden_size + _TOKEN_WIDTH * (tokens > 0)
        inputs += 3 * (logprobs != "none") + 2 * group_mean
        self.input = nn.Linear(inputs, width)
        # On CPUs half the time of a GRU.
        self.memory = nn.LSTM(width, width, batch_first=True)
        # Forget gates begin open (Jozefowicz, Zaremba & Sutskever 2015).
        biases = dict(self.memory.named_parameters())["bias_ih_l0"]
        nn.init.ones_(biases.detach()[width : 2 * width])
        self.hidden = nn.Linear(width, width)
        self.output = _zero_output(width, outputs)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (B,T) the output before each token, or (B,T,K) if there are several."""
        mask_BT = rollouts.action_mask
        # The recurrence is the cost: columns that are padding in every row are left out of it.
        used = mask_BT.any(0).nonzero()
        width = int(used[-1]) + 1 if len(used) else 1
        read_BTW = torch.relu(self.input(self._features(rollouts, scores, width)))
        seen_BTW = self.memory(read_BTW)[0]
        found = self.output(torch.relu(self.hidden(seen_BTW)))
        return F.pad(found, (0, 0, 0, mask_BT.shape[1] - width)).squeeze(-1)

    def _features(self, rollouts: RolloutBatch, scores: TokenScores | None, width: int) -> Tensor:
        """Joins what is known before each token: (B,width,inputs)."""
        mask_BT = rollouts.action_mask[:, :width]
        live = self.states == "live"
        hidden = cast(TokenScores, scores).hidden if live else rollouts.reference_hidden
        states_BTH = cast(Tensor, hidden)[:, :width].detach().to(self.output.weight.dtype)
        # Masked after the norm, which makes something of nothing.
        states_BTH = self.norm(states_BTH).masked_fill(~mask_BT[..., None], 0)
        parts = [states_BTH, _before(states_BTH)]
        if self.token is not None:
            ids_BT = rollouts.completion_ids[:, :width] % self.token.num_embeddings
            parts.append(_before(self.token(ids_BT).masked_fill(~mask_BT[..., None], 0)))
        if self.logprobs != "none":
            live = self.logprobs == "live"
            logprobs = rollouts.logprobs if live else rollouts.reference_logprobs
            entropies = rollouts.entropies if live else rollouts.reference_entropies
            chosen_BT, open_BT = (
                cast(Tensor, x)[:, :width].masked_fill(~mask_BT, 0).to(states_BTH)
                for x in (logprobs, entropies)
            )
            past_BT2 = torch.stack([chosen_BT.clamp(min=_LEAST_LOGPROB), open_BT], -1)
            parts += [_before(past_BT2), open_BT[..., None]]
        if self.group_mean:
            others_B = cast(Tensor, rollouts.others_reward)
            known_B = others_B.isfinite()
            pair_B2 = torch.stack([others_B.nan_to_num(0.0), known_B.to(others_B)], -1)
            parts.append(pair_B2[:, None].expand(-1, width, -1).to(states_BTH))
        return torch.cat(parts, -1)


def _before(x_BTF: Tensor) -> Tensor:
    """Returns what stood at the token before; nothing at the first."""
    return F.pad(x_BTF, (0, 0, 1, 0))[:, :-1]


class Ensemble(nn.Module):
    """Several readers with first weights of their own."""

    def __init__(self, members: list[Reader]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, rollouts: RolloutBatch, scores: TokenScores | None) -> Tensor:
        """Returns (E,B,T) or (E,B,T,K) outputs of every member."""
        return torch.stack([member(rollouts, scores) for member in self.members])


def _zero_output(width: int, outputs: int) -> nn.Linear:
    output = nn.Linear(width, outputs)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    return output


@dataclass(frozen=True, slots=True)
class Critic(ValueEstimator):
    """V from a network, regressed on lambda-returns.

    With ``objective="mse"`` V is the output and its loss (V_m − G_m)², or with ``value_clip`` c the
    larger of it and (V_old + clip(V − V_old, ±c) − G_m)²; not halved. With ``bce`` V = low +
    (high − low) σ(output), and its loss the cross-entropy of G's place in that range. With
    ``hl_gauss`` V is the mean of a distribution over ``bins`` places of the range, and its loss the
    cross-entropy with a normal distribution around G, .75 of a bin wide.

    Assumption: outcomes can be foretold from a prefix. Degenerate case: an untrained critic is 0
    everywhere (the middle of the range, where there is one), and the method is REINFORCE without a
    baseline. Cost: ``backbone`` doubles the training cost, ``head`` adds next to nothing,
    ``reader`` a recurrence over tokens, one small step each.

    Args:
        network: ``backbone``, a copy of the policy's network under its output layer (``trunk`` is
            an older name of it), ``head``, a small network on the policy's detached hidden
            states, or ``reader``, a recurrent network that reads along the states of a policy:
            docs/how-to/critics.md says what it was measured to know. ``reader`` is trained at every
            token, whatever the segments, so that one serves every segmenter; the others at the
            segments' anchors.
        width: hidden units of ``head`` (128 by default) or of ``reader`` (64).
        states: of ``reader``: hidden states of the frozen starting policy, or the current one's,
            with which training collapses at small lambdas (docs/how-to/critics.md).
        logprobs: of ``reader``: log-probs and entropies that it reads, of the starting policy, the
            current one, or none. The current one's make training collapse, and are refused unless
            ``train.value.live_logprobs`` says otherwise.
        tokens: of ``reader``: rows of its table of tokens, met by their ids modulo it; 0 = none.
        group_mean: of ``reader``: whether it is told the mean reward of the group's other
            completions, which says what no prompt does; None = yes.
        ensemble: of ``reader``: how many; V is their mean, see ``deviations``.
        objective: ``mse``, ``bce`` or ``hl_gauss``; None = ``bce`` of ``reader``, else ``mse``.
        low, high: range of returns, for ``bce`` and ``hl_gauss``.
        bins: of ``hl_gauss``, within that range.
        gamma, lam, clock: of the regression targets, see ``segcredit.lambda_returns``. Other
            than the advantage's, they decouple the two (VC-PPO, arXiv 2503.01491).
        anchor: the state that a segment's value is of, see ``Segmentation.anchors``.
        value_clip: of ``mse``: how far from the sampled value the clipped loss follows; None = no
            clipping.

    Source:
        SAPO, arXiv 2605.01327, section 4.1 and eq. 10: boundaries only, no clipping. Clipping:
        PPO's reference code, Schulman et al. 2017, arXiv 1707.06347. HL-Gauss: Farebrother et al.
        2024, arXiv 2403.03950; ours has three more bins beyond each end of the range. The reader
        is ours.
    """

    network: Literal["backbone", "head", "reader", "trunk"] = "backbone"
    width: Annotated[int, Interval(ge=1, le=10**5)] | None = None
    states: Literal["reference", "live"] = "reference"
    logprobs: Literal["reference", "live", "none"] = "reference"
    tokens: Annotated[int, Interval(ge=0, le=10**6)] = 1024
    group_mean: bool | None = None
    ensemble: Annotated[int, Interval(ge=1, le=64)] = 1
    objective: Literal["mse", "bce", "hl_gauss"] | None = None
    low: Annotated[float, Interval(ge=-1e9, le=1e9)] = 0.0
    high: Annotated[float, Interval(ge=-1e9, le=1e9)] = 1.0
    bins: Annotated[int, Interval(ge=2, le=1000)] = 50
    gamma: Annotated[float, Interval(ge=0, le=1)] = 1.0
    lam: Annotated[float, Interval(ge=0, le=1)] = 1.0
    clock: Clock = "segment"
    anchor: Anchor = "start"
    value_clip: Annotated[float, Interval(gt=0, le=1e9)] | None = None

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise ValueError(
                f"low is {self.low} and high is {self.high}; expected low < high, the range of the"
                " returns, such as 0 and 1."
            )
        if self.value_clip is not None and self._objective != "mse":
            raise ValueError(
                f"value_clip is {self.value_clip} with objective {self._objective!r}; expected it"
                " with 'mse' alone, since it bounds a squared error. Leave one of the two out."
            )
        if self.network != "reader" and (self.ensemble > 1 or self.group_mean):
            raise ValueError(
                f"network is {self.network!r} with ensemble {self.ensemble} and group_mean"
                f" {self.group_mean}; expected both with network 'reader' alone."
            )

    @property
    def _objective(self) -> Literal["mse", "bce", "hl_gauss"]:
        return self.objective or ("bce" if self.network == "reader" else "mse")

    @property
    def needs(self) -> tuple[type, ...]:
        """The capability to copy the backbone, where the critic is such a copy."""
        return (SupportsBackbone,) if self.network in ("backbone", "trunk") else ()

    @property
    def reads(self) -> frozenset[Reading]:
        """Hidden states of the policy for ``head``; what ``states`` and ``logprobs`` name."""
        if self.network == "head":
            return frozenset({"hidden"})
        if self.network != "reader":
            return frozenset()
        of_states: Reading = "hidden" if self.states == "live" else "reference"
        if self.logprobs == "none":
            return frozenset({of_states})
        return frozenset({of_states, "logprobs" if self.logprobs == "live" else "reference"})

    @property
    def value_states(self) -> Literal["segments", "tokens"]:
        """Every token's state for ``reader``; else those at the segments' anchors."""
        return "tokens" if self.network == "reader" else "segments"

    def start(self, policy: Policy) -> nn.Module:
        """Builds the network, its output 0."""
        outputs = self.bins + 2 * _SPARE_BINS if self._objective == "hl_gauss" else 1
        if self.network == "head":
            return HeadCritic(policy, self.width or 128, outputs)
        if self.network != "reader":
            return BackboneCritic(capability(policy, SupportsBackbone, "a critic"), outputs)
        readers = [
            Reader(
                policy,
                self.width or 64,
                outputs,
                states=self.states,
                logprobs=self.logprobs,
                tokens=self.tokens,
                group_mean=self.group_mean is not False,
            )
            for _ in range(self.ensemble)
        ]
        return readers[0] if self.ensemble == 1 else Ensemble(readers)

    def estimate(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the network's value at each anchor, the mean of an ensemble's."""
        every = self._estimates(state, rollouts, segmentation, simulator)
        return every.mean(0) if self.ensemble > 1 else every

    def deviations(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) the standard deviation of an ensemble's values, an error bar of V.

        Raises:
            ValueError: there is one network alone.
        """
        if self.ensemble == 1:
            raise ValueError("ensemble is 1; expected at least 2, since one value has no spread.")
        with torch.no_grad():
            return self._estimates(state, rollouts, segmentation, simulator).std(0)

    def targets(self, values: SegmentValues) -> Tensor:
        """Computes (B,S) lambda-returns with the critic's own lambda."""
        return lambda_returns(values, gamma=self.gamma, lam=self.lam, clock=self.clock)

    def loss(
        self,
        state: nn.Module,
        minibatch: RolloutBatch,
        segmentation: Segmentation,
        scores: TokenScores,
        values: SegmentValues,
        targets_BS: Tensor,
    ) -> Tensor:
        """Computes (B,S) the loss of each value, a mean over an ensemble's members."""
        outputs = self._at_anchors(state(minibatch, scores), segmentation)
        losses = self._losses(outputs, values, targets_BS)
        losses = losses.mean(0) if self.ensemble > 1 else losses
        return losses.masked_fill(~segmentation.mask, 0)

    def _estimates(
        self,
        state: nn.Module,
        rollouts: RolloutBatch,
        segmentation: Segmentation,
        simulator: Simulator,
    ) -> Tensor:
        """Returns (B,S) values, or (E,B,S) of an ensemble."""
        # A pass of the policy, unless the scores are known: only for those who read it.
        scores = simulator.score(rollouts) if "hidden" in self.reads else None
        values = self._values(self._at_anchors(state(rollouts, scores), segmentation))
        return values.masked_fill(~segmentation.mask, 0)

    def _at_anchors(self, outputs: Tensor, segmentation: Segmentation) -> Tensor:
        """Reads outputs of (..., B,T) or (..., B,T,K) off at the anchors of segments."""
        rows_B1 = torch.arange(len(segmentation.counts), device=outputs.device)[:, None]
        anchors_BS = segmentation.anchors(self.anchor)
        return (
            outputs[:, rows_B1, anchors_BS] if self.ensemble > 1 else outputs[rows_B1, anchors_BS]
        )

    def _values(self, outputs: Tensor) -> Tensor:
        if self._objective == "mse":
            return outputs
        if self._objective == "bce":
            return self.low + (self.high - self.low) * outputs.sigmoid()
        return outputs.softmax(-1) @ self._centers(outputs)

    def _losses(self, outputs: Tensor, values: SegmentValues, targets_BS: Tensor) -> Tensor:
        if self._objective == "mse":
            errors_BS = (outputs - targets_BS).square()
            if self.value_clip is None:
                return errors_BS
            moved_BS = (outputs - values.values).clamp(-self.value_clip, self.value_clip)
            return torch.maximum(errors_BS, (values.values + moved_BS - targets_BS).square())
        goals_BS = targets_BS.clamp(self.low, self.high).to(outputs.dtype)
        if self._objective == "bce":
            shares = ((goals_BS - self.low) / (self.high - self.low)).expand_as(outputs)
            return F.binary_cross_entropy_with_logits(outputs, shares, reduction="none")
        # The share of a normal distribution around the goal that falls into each bin.
        step = (self.high - self.low) / self.bins
        edges_K = self._centers(outputs)[:, None] + step / 2 * outputs.new_tensor([-1.0, 1.0])
        below = ((edges_K - goals_BS[..., None, None]) / (_SMOOTHING * step * 2**0.5)).erf()
        wanted_BSK = below[..., 1] - below[..., 0]
        wanted_BSK = wanted_BSK / wanted_BSK.sum(-1, keepdim=True)
        return -(wanted_BSK * outputs.log_softmax(-1)).sum(-1)

    def _centers(self, like: Tensor) -> Tensor:
        """Returns (K,) the middles of the bins."""
        places_K = torch.arange(-_SPARE_BINS, self.bins + _SPARE_BINS, device=like.device)
        step = (self.high - self.low) / self.bins
        return self.low + (places_K.to(like.dtype) + 0.5) * step
