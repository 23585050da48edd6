"""Inputs of a network besides token ids and mask: positions, token types, images.

Letters: ``L`` tokens of prompt and completion; the others as in ``segcredit.types``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from segcredit.errors import PolicyError

Extras = Sequence[Mapping[str, Tensor]]
"""Inputs that ``ImagePrompts`` made of each row's prompt; empty where no prompt has any."""
IDS = "input_ids"
"""The prompt's own ids, (1,L), kept with its images: they tell whose images these are."""


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """Makes one batch of the inputs of its rows. Without fields: a network that reads text alone.

    Rows have their images in dictionaries of their own, so that shuffles and repetitions need not
    know which part of a tensor belongs to which image.
    """

    token_types: tuple[tuple[str, int], ...] = ()
    """Names of inputs with one number a token, and the number of completion tokens."""
    required: frozenset[str] = frozenset()
    """Inputs without which a prompt with images is not the one that was sampled from."""
    slot_ids: tuple[int, ...] = ()
    """Tokens in whose place the network puts what it sees."""
    first_position: int = 0
    """Position of a prompt's first token."""

    def prepared(
        self,
        base: nn.Module,
        ids_BL: Int[Tensor, "B L"],
        mask_BL: Bool[Tensor, "B L"],
        extras: Extras,
        after: Sequence[int],
    ) -> dict[str, Tensor]:
        """Builds the arguments of one pass of a base model, by name.

        Args:
            base: the network under the output layer.
            ids_BL: prompts with what follows them, ending in the last column.
            mask_BL: False on the padding to their left.
            extras: of each row, or empty.
            after: of each row, how many of the columns follow its prompt.

        Raises:
            PolicyError: a row's images are missing, or are another prompt's.
        """
        more = self.collate(ids_BL, extras, after)
        mask_BL = mask_BL.long()
        places = self._positions(base, ids_BL, mask_BL, more)
        return {"input_ids": ids_BL, "attention_mask": mask_BL, "position_ids": places, **more}

    def _positions(
        self, base: nn.Module, ids_BL: Tensor, mask_BL: Tensor, more: Mapping[str, Tensor]
    ) -> Tensor:
        """Computes positions, (B,L), or (3,B,L) where images are placed in height and width.

        Given none, networks count the padding on the left.
        """
        # Called here, since the network would go on from what it remembers of an earlier batch.
        spatial: Any = getattr(base, "get_rope_index", None)
        if spatial is not None and "image_grid_thw" in more:
            return spatial(input_ids=ids_BL, attention_mask=mask_BL, **more)[0]
        return (mask_BL.cumsum(1) - 1).clamp(min=0) + self.first_position

    def collate(self, ids_BL: Tensor, extras: Extras, after: Sequence[int]) -> dict[str, Tensor]:
        """Stacks the inputs of rows: token types padded on the left, images one after another.

        Images that differ in a trailing size are filled with 0 up to the largest.

        Args:
            ids_BL: (B,L) prompts with what follows them, ending in the last column.
            extras: inputs of each row, or empty.
            after: how many of each row's columns follow its prompt.

        Returns:
            Inputs by name, on the device of the ids; none where no row has any.

        Raises:
            PolicyError: a row's images are missing, or are another prompt's.
        """
        rows = extras or [{}] * len(ids_BL)
        if self.slot_ids:
            self._require_images(ids_BL, rows, after)
        types = {
            name: torch.stack(
                [
                    self._types(row, name, last, ids_BL.shape[1], n)
                    for row, n in zip(rows, after, strict=True)
                ]
            ).to(ids_BL.device)
            for name, last in self.token_types
        }
        names = dict.fromkeys(name for row in rows for name in row if name != IDS)
        return types | {
            name: _stacked([row[name] for row in rows if name in row]).to(ids_BL.device)
            for name in names
            if name not in types
        }

    def _types(
        self, row: Mapping[str, Tensor], name: str, last: int, width: int, after: int
    ) -> Tensor:
        """Returns (L,) token types: 0 on padding and text, the prompt's own, the completion's."""
        own = row[name][0] if name in row else torch.zeros(0, dtype=torch.long)
        return pad(pad(own, (width - after - len(own), 0)), (0, after), value=last)

    def _require_images(self, ids_BL: Tensor, rows: Extras, after: Sequence[int]) -> None:
        slots = torch.tensor(self.slot_ids, device=ids_BL.device)
        columns_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        begins_B1 = ids_BL.shape[1] - torch.tensor(after, device=ids_BL.device)[:, None]
        slots_BL = torch.isin(ids_BL, slots)
        if (slots_BL & (columns_L >= begins_B1)).any():
            raise PolicyError(
                "a completion has a token in whose place the model puts an image; expected such"
                " tokens in prompts alone, since completions bring no images. Usually a given text"
                " names one of the model's image tokens: take it out."
            )
        pictured = slots_BL.any(1).cpu().numpy().tolist()
        for place, (row, has_slots, n) in enumerate(zip(rows, pictured, after, strict=True)):
            missing = self.required - row.keys()
            if has_slots and missing:
                raise PolicyError(
                    f"the prompt of row {place} has places for images, and its inputs lack"
                    f" {', '.join(sorted(missing))}; expected everything that encode_prompts gave"
                    " with it, since the model would be silently wrong without. Usually extras"
                    " were left out where rollouts were put together."
                )
            if IDS in row and not _ends_with(ids_BL[place, : ids_BL.shape[1] - n], row[IDS][0]):
                raise PolicyError(
                    f"the images of row {place} came with another prompt; expected those of its"
                    " own. Usually extras were reordered without the rows, or the other way"
                    " round: rollouts.select keeps them together."
                )


def _ends_with(ids_P: Tensor, own_L: Tensor) -> bool:
    return torch.equal(ids_P[len(ids_P) - len(own_L) :].cpu(), own_L.cpu())


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks tensors along their first dimension, the others made as large as the largest."""
    sizes = [max(sizes) for sizes in zip(*(x.shape[1:] for x in tensors), strict=True)]
    padded: list[Tensor] = []
    for x in tensors:
        gaps = [(0, size - own) for size, own in zip(sizes, x.shape[1:], strict=True)]
        padded.append(pad(x, [n for gap in reversed(gaps) for n in gap]))
    return torch.cat(padded)
