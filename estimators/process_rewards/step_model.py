"""Rewards of steps by a model that was trained to judge them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTokenClassification

from segcredit import ProcessReward, RolloutBatch, Segmentation


@dataclass(frozen=True, slots=True)
class StepModel(ProcessReward):
    """The word of a process reward model at each segment's last token.

    The model reads the prompt and the completion, observations included, as the policy's own ids,
    in one pass a batch; p is its probability of ``label`` there. Nothing is tokenised again, so
    that any segmenter can be scored: the model may have seen other steps than these in training,
    and what it says inside a step is its own extrapolation.

    Assumption: the model's vocabulary is the policy's, as in models trained from one family's base;
    another vocabulary cannot be told from ids and gives noise. Degenerate case: a model that says
    the same everywhere is a constant a segment, which pays for many segments (``min_form`` bounds
    it, ``group_centered`` takes a mean off). Cost: one pass of the model over each completion.

    As a value of states rather than a reward: the estimator ``process_value``.

    Args:
        model: folder or hub name of a token classifier (``AutoModelForTokenClassification``), such
            as TRL's ``PRMTrainer`` saves.
        label: the class of good steps.
        unit: ``probability``: p, in [0,1]. ``difference``: 2p − 1, in [−1,1]: right less wrong.
        rows: completions in one pass.

    Raises:
        ValueError: the model cannot be read, is no token classifier, or has no such class.

    Source:
        A classifier of steps read at their ends: Lightman et al. 2023, arXiv 2305.20050; the
        difference: PURE, Cheng et al. 2025, arXiv 2504.15275.
    """

    model: str
    label: Annotated[int, Interval(ge=0, le=10**4)] = 1
    unit: Literal["probability", "difference"] = "probability"
    rows: Annotated[int, Interval(ge=1, le=10**6)] = 32

    def __post_init__(self) -> None:
        """Reads the model's description, so that a run is refused before its first step."""
        try:
            config: Any = cast(Any, AutoConfig).from_pretrained(self.model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model is {self.model!r}, which holds no description of a model that transformers"
                f" can read ({str(error).splitlines()[0]}); expected a folder or hub name of a"
                " token classifier."
            ) from error
        if self.label >= config.num_labels:
            raise ValueError(
                f"label is {self.label}, and {self.model!r} has {config.num_labels} classes;"
                " expected the number of one of them, counted from 0."
            )

    def reward(self, rollouts: RolloutBatch, segmentation: Segmentation) -> Tensor:
        """Returns (B,S) what the model says at segments' ends; 0 where there is no segment.

        Raises:
            ValueError: a token is beyond the model's vocabulary.
        """
        ids_BN = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)
        network = _loaded(self.model, str(ids_BN.device))
        known = cast(Any, network).get_input_embeddings().num_embeddings
        # Read from the device once a batch; a GPU's own error would name no cause and end the run.
        if ids_BN.numel() and (largest := int(ids_BN.max())) >= known:
            raise ValueError(
                f"the policy wrote token {largest}, and {self.model!r} knows {known} tokens;"
                " expected a model with the policy's vocabulary, trained from the same base."
            )
        # Left padding of prompts is moved behind the completions: positions then begin at 0, as
        # the model was trained, whatever kind of positions it has.
        width, pads_B1 = rollouts.prompt_ids.shape[1], (~rollouts.prompt_mask).sum(1, keepdim=True)
        places_N = torch.arange(ids_BN.shape[1], device=ids_BN.device)
        places_T = places_N[: rollouts.completion_ids.shape[1]]
        # Up to the last token that was sampled: what follows is padding, or no step's concern.
        tokens_B1 = F.pad(rollouts.action_mask * (places_T + 1), (1, 0)).amax(1, keepdim=True)
        read_BN = places_N < width - pads_B1 + tokens_B1
        turned_BN = ids_BN.gather(1, (places_N + pads_B1) % ids_BN.shape[1])
        # At least one pass, which gives an empty batch its shape.
        passes = [slice(at, at + self.rows) for at in range(0, max(len(ids_BN), 1), self.rows)]
        good_BN = torch.cat(
            [_probabilities(network, turned_BN[p], read_BN[p], self.label) for p in passes]
        )
        good_BT = good_BN.gather(1, width - pads_B1 + places_T)
        told_BT = good_BT if self.unit == "probability" else 2 * good_BT - 1
        told_BT = told_BT.to(rollouts.token_rewards).masked_fill(~segmentation.ends, 0)
        return segmentation.reduce(told_BT, "sum")


@torch.no_grad()
def _probabilities(network: nn.Module, ids_BN: Tensor, mask_BN: Tensor, label: int) -> Tensor:
    """Returns (B,N) the probability of the class at each token."""
    logits_BNK = network(input_ids=ids_BN, attention_mask=mask_BN.long()).logits
    return logits_BNK.float().softmax(-1)[..., label]


@functools.lru_cache(maxsize=2)
def _loaded(model: str, device: str) -> nn.Module:
    """Returns the model, read once a process.

    Raises:
        ValueError: it has no trained classifier; transformers would draw one.
    """
    loader: Any = AutoModelForTokenClassification
    network, facts = loader.from_pretrained(model, output_loading_info=True)
    if missing := sorted(facts["missing_keys"]):
        raise ValueError(
            f"{model!r} has no weights for {missing[0]!r}; expected a trained token classifier. A"
            " language model or a classifier of whole texts has no judgement of steps."
        )
    return network.requires_grad_(False).eval().to(device)
