"""Sampling one step ahead: the next step's completions, while this one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any

from segcredit.errors import PluginError
from segcredit.training.build import Run
from segcredit.training.rollouts.completions import score, unscored_rollouts
from segcredit.training.rollouts.sampling import Drawn, Sampled, draw, sample, scored


class Ahead:
    """The batches of a run, each drawn before the update of the step before it.

    Such completions are of the policy before that update; they are scored under the one after it,
    and ``sampler_logprobs`` tells what they were drawn with, which ``loss.correction`` reads. A
    sampler of this process draws before the update begins, since the update changes its weights; an
    engine with weights of its own draws beside it, and gets the new ones when both are done. Where
    ``rollouts.ahead`` is 0, and at the first step, batches are drawn when they are asked for.

    Args:
        run: of one process.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._found: Future[Drawn] | None = None
        self._streams = self._positions()

    def sample(self, step: int) -> Sampled:
        """Returns a step's rollouts, scored under the current policy.

        Raises:
            PluginError: the sampler tells no log-probs, though its weights are its own; or as
                ``sampling.sample`` raises it.
        """
        if self._found is None:
            return sample(self._run, step)
        found, self._found = self._found.result(), None
        if found.completions.sampler_logprobs is None:
            raise PluginError(
                f"sampler {self._run.config.sampler['name']!r} tells no log-probs of what it"
                " draws; rollouts.ahead = 1 needs them, since the policy that drew has been"
                " updated. Return them in SampledTokens.logprobs, or set rollouts.ahead = 0."
            )
        return scored(self._run, found.completions, step, tokens=found.tokens, rounds=found.rounds)

    def begin(self, step: int) -> None:
        """Begins to draw a step's completions, or draws them; nothing after the last step."""
        run = self._run
        self._streams = self._positions()
        if not run.config.rollouts.ahead or step > run.config.train.steps:
            return
        if run.actor.samples_in_process:
            self._found = _done(lambda: _told(run, draw(run, step)))
        else:
            self._found = _beside(lambda: draw(run, step))

    def wait(self) -> None:
        """Waits for what was begun; the engine's weights may change then.

        Raises:
            SegcreditError: as ``sampling.sample`` raises it.
        """
        if self._found is not None:
            self._found.result()

    def prompt_states(self) -> dict[str, Any]:
        """Returns the prompt streams' states before what was begun, for a checkpoint.

        A run that is resumed there draws these prompts again, under the policy that it then has.
        """
        return self._streams if self._found is not None else self._positions()

    def _positions(self) -> dict[str, Any]:
        run = self._run
        return {
            "prompts": run.prompts.state_dict(),
            "further_prompts": run.further_prompts.state_dict(),
        }


def _told(run: Run, drawn: Drawn) -> Drawn:
    """Adds the log-probs that completions were drawn with, where the sampler did not tell them."""
    if drawn.completions.sampler_logprobs is not None:
        return drawn
    rollouts = unscored_rollouts(drawn.completions)
    scores = score(run.actor, rollouts, micro_tokens=run.config.train.micro_tokens)
    return replace(drawn, completions=replace(drawn.completions, sampler_logprobs=scores.logprobs))


def _done(work: Callable[[], Drawn]) -> Future[Drawn]:
    found: Future[Drawn] = Future()
    found.set_result(work())
    return found


def _beside(work: Callable[[], Drawn]) -> Future[Drawn]:
    """Runs work in a thread that does not keep a stopped program alive."""
    found: Future[Drawn] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # raised where the result is asked for
            found.set_exception(error)

    Thread(target=run, name="rollouts ahead", daemon=True).start()
    return found
