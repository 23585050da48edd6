"""The plug-in under test, and what the rules of all kinds ask of it."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor

from segcredit.errors import PluginError
from segcredit.testing.other_device import other_device

_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class CheckedPlugin:
    """The plug-in under test, as messages name it.

    Args:
        kind: "segmenter", "value estimator", "task" and so on.
        plugin: the plug-in.
    """

    kind: str
    plugin: Any

    @property
    def name(self) -> str:
        """Kind and class of the plug-in."""
        return f"{self.kind} {type(self.plugin).__name__!r}"

    def broke(self, rule: str, *, found: str, expected: str, cause: str) -> NoReturn:
        """Raises the sentence for a broken rule."""
        raise PluginError(
            f"{self.name} breaks the rule that {rule}: found {found}; expected {expected}."
            f" The usual cause: {cause}."
        )

    @contextmanager
    def using(self, what: str) -> Generator[None, None, None]:
        """Turns anything that the plug-in raises inside into a sentence that names it."""
        try:
            yield
        except PluginError as error:
            raise PluginError(f"{self.name} failed on {what}: {error}") from error
        except Exception as error:
            raise PluginError(
                f"{self.name} raised {type(error).__name__} on {what}: {error}"
            ) from error

    def unpickled(self) -> CheckedPlugin:
        """Returns the plug-in as another process would get it."""
        with self.using("pickling"):
            plugin = pickle.loads(pickle.dumps(self.plugin))
        return CheckedPlugin(self.kind, plugin)

    def require_same_unpickled(self, found: Tensor, wanted: Tensor, what: str) -> None:
        """Requires that the unpickled plug-in gave exactly what the plug-in itself gives."""
        if not torch.equal(found, wanted):
            self.broke(
                "a plug-in survives pickling",
                found=f"other {what} from the unpickled plug-in",
                expected=f"the same {what}",
                cause="state outside the dataclass's fields",
            )

    def require_values(self, found: object, mask_BS: Tensor, source: str) -> None:
        """Requires a table of finite floats, one for each segment."""
        rule = f"{source.rstrip(',')} gives one finite number for each segment"
        expected = f"a float tensor of shape {tuple(mask_BS.shape)}, finite wherever a segment is"
        if not isinstance(found, Tensor) or found.shape != mask_BS.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            self.broke(
                rule,
                found=f"{shape}",
                expected=expected,
                cause="one value a row or a token instead of one a segment",
            )
        if not found.is_floating_point() or not bool(found[mask_BS].isfinite().all()):
            kind = "a number that is not finite" if found.is_floating_point() else f"{found.dtype}"
            self.broke(
                rule,
                found=kind,
                expected=expected,
                cause="a division by the size or the spread of a group of one, or of an empty row",
            )

    def require_untouched(self, before: Any, after: Any, source: str) -> None:
        """Requires that an input is bit for bit what it was, field by field."""
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            same = torch.equal(old, new) if isinstance(old, Tensor) else old == new
            if not same:
                self.broke(
                    "inputs are not changed",
                    found=f"that {source} changed {type(before).__name__}.{field.name}",
                    expected="the same numbers bit for bit",
                    cause="an in-place operation (x[...] = , x += , x.add_()); work on a new"
                    " tensor",
                )

    def require_close(self, found: Tensor, wanted: Tensor, *, rule: str, cause: str) -> None:
        """Requires the same numbers, but for what another order of sums changes."""
        alike = found.shape == wanted.shape
        if alike and torch.allclose(found, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
            return
        apart = (
            f"numbers that differ by {float((found - wanted).abs().max()):.3g}"
            if alike
            else f"shape {tuple(found.shape)}"
        )
        self.broke(rule, found=apart, expected=f"the same numbers within {_TOLERANCE}", cause=cause)

    def require_same_elsewhere(self, work: Callable[[torch.device], Tensor], what: str) -> None:
        """Requires the numbers of the CPU on a device that is another, and that they are there.

        Args:
            work: asks the plug-in, with all that it is given on a device.
            what: it is given.
        """
        wanted = work(torch.device("cpu"))
        with other_device() as device, self.using(f"{what} on another device than the CPU"):
            answer = work(device)
            place, found = answer.device, answer.detach().cpu()
        if place.type != device.type:
            self.broke(
                "what it gives is on the device of what it is given",
                found=f"a tensor on {place.type!r} from {what} on {device.type!r}",
                expected="one on the same device",
                cause="a tensor made without device=, or moved to the CPU and not back",
            )
        self.require_close(
            found.double(),
            wanted.detach().double(),
            rule="every device gives the same numbers",
            cause="a branch on the device, or what is left to chance, such as the order of ties",
        )


Rule = Callable[[CheckedPlugin], None]


def inside(x: Tensor, mask: Tensor) -> Tensor:
    """Returns a plug-in's numbers, on the device where they are, and 0 outside the mask."""
    return x.masked_fill(~mask.to(x.device), 0)


def require_shares(
    checked: CheckedPlugin, drawn_N: Tensor, shares_V: Tensor, *, rule: str, cause: str
) -> None:
    """Requires that categories came as often as their shares say, by Pearson's chi-square test.

    Seven standard deviations of the statistic are allowed, which chance passes once in a million.
    """
    expected_V = shares_V.double() * len(drawn_N)
    counts_V = drawn_N.bincount(minlength=len(shares_V)).double()
    often_V = expected_V >= 5
    seen, due = (torch.cat([x[often_V], x[~often_V].sum()[None]]) for x in (counts_V, expected_V))
    if bool(((due < 1e-9) & (seen > 0)).any()):
        statistic = torch.inf
    else:
        statistic = float(((seen - due) ** 2 / due.clamp(min=1)).sum())
    freedom = len(seen) - 1
    bound = freedom + 7 * (2 * max(freedom, 1)) ** 0.5
    if statistic > bound:
        checked.broke(
            rule,
            found=f"a chi-square of {statistic:.0f} over {len(drawn_N)} draws",
            expected=f"at most {bound:.0f}, with {freedom} degrees of freedom",
            cause=cause,
        )


def shuffled(count: int) -> list[int]:
    """Returns an order that leaves no row in place and tears neighbours apart."""
    return [*range(1, count, 2), *range(0, count, 2)] if count > 1 else [0]
