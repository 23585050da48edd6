"""Walks over a grid to a key and then to a door, a step a turn, through states that come again.

From column 1, row 1 to the key at 3, 1 and on to the door at 3, 2; each turn is a line here, with
what it is answered:

    113132:
    r  21;
    r  31k;
    d
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from segcredit.environments import played, turns_of
from segcredit.errors import TaskError
from segcredit.protocols import Environment, Prompt, Transition, Verdict
from segcredit.tasks.data.drawn_problems import DrawnProblems

_Place = tuple[int, int]
"""Column and row, from 1 on; rows are counted downwards."""
_MOVES = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
_SPARE = 4
"""Turns beyond those of the longest shortest path."""


@dataclass(frozen=True, slots=True)
class GridWorld(DrawnProblems):
    """Walks to a door that opens to whoever has fetched the key, in moves u, d, l and r.

    A move is answered by the place that it leads to, with ``k`` once the key is there: ``31k;``.
    Who walks into the wall, or into the door without the key, stays where they are, and anything
    but a move is answered ``x;``. Through the door the episode ends, with reward 1. Paths cross and
    come back, so that the ``anchor`` of a turn, its place with or without the key, is often that of
    another turn: the case that GiGPO (arXiv 2505.10978) is made for. ``process_correct`` tells
    shortest paths.

    The tutor forgets the key with ``tutor_bug`` from every second column, and walks into the door
    until there are no more turns. Above one half that is the likeliest after imitation, so that
    learning has to turn a mode over. In each turn it moves anywhere with ``tutor_error``.

    The prompt, such as ``113132:``, is the places of start, key and door. One in ten, by a
    checksum, is for evaluation and never for training.

    Raises:
        TaskError: an option is out of its range; names the option.
    """

    columns: int = 5
    """Columns of the grid, from 2 to 9."""
    rows: int = 5
    """Rows of the grid, from 2 to 9."""
    max_distance: int = 8
    """Most moves of a shortest path, at least 2; an episode has four turns more."""
    key_reward: float = 0.0
    """Reward of the move that fetches the key, beside that of the door."""
    step_penalty: float = 0.0
    """Penalty of each turn, in reward units."""
    tutor_error: float = 0.1
    """Probability a turn of a move anywhere."""
    tutor_bug: float = 0.7
    """Probability that the key is forgotten, from the columns 2, 4, 6 and 8."""

    def __post_init__(self) -> None:
        ranges = {
            "columns": (self.columns, 2, 9),
            "rows": (self.rows, 2, 9),
            "max_distance": (self.max_distance, 2, 64),
            "key_reward": (self.key_reward, -100, 100),
            "step_penalty": (self.step_penalty, -100, 100),
            "tutor_error": (self.tutor_error, 0, 1),
            "tutor_bug": (self.tutor_bug, 0, 1),
        }
        for name, (found, low, high) in ranges.items():
            if not low <= found <= high:
                raise TaskError(
                    f"task.{name} of the grid_world task is {found}; expected a number from {low}"
                    f" to {high}."
                )

    def environment(self) -> Environment:
        """Returns the grid."""
        return _Grid(self)

    def verify(self, prompt: Prompt, text: str, *, truncated: bool) -> Verdict:
        """Gives reward 1 to moves that lead from the start through the door, and end there."""
        grid = _Grid(self)
        moves = turns_of(text, grid.stop)
        answers = list(played(grid, prompt, moves))
        correct = answers[-1].done and len(answers) == len(moves) and not truncated
        return Verdict(float(correct), correct)

    def alphabet(self) -> str:
        """Returns the digits, the moves, and the marks of prompts and observations."""
        return "0123456789udlrkx:;"

    def draw(self, chance: random.Random) -> str:
        """Draws three places, of which no two are the same."""
        places = [(x, y) for x in range(1, self.columns + 1) for y in range(1, self.rows + 1)]
        while True:
            start, key, door = chance.sample(places, 3)
            near = _distance(start, key) + _distance(key, door) <= self.max_distance
            if near and not _between(start, door, key):
                return "".join(f"{x}{y}" for x, y in (start, key, door))

    def prompt(self, problem: str) -> Prompt:
        """Makes the prompt of a problem; its answer is the places of start, key and door."""
        digits = [*map(int, problem)]
        places = tuple(zip(digits[::2], digits[1::2], strict=True))
        return Prompt(key=problem, text=f"{problem}:", answer=places)

    def tutor(self, problem: str, chance: random.Random) -> str:
        """Returns moves that end at the door, or where there are no more turns."""
        grid, moves = _Grid(self), ""
        state = _State(*self.prompt(problem).answer)
        forgets = state.at[0] % 2 == 0 and chance.random() < self.tutor_bug
        done = False
        while not done and len(moves) < grid.max_turns:
            errs = chance.random() < self.tutor_error
            near = [*_MOVES] if errs else _nearer(state, to_door=forgets or state.has_key)
            moves += chance.choice(near)
            answer = grid.step(state, moves[-1])
            state, done = answer.state, answer.done
        return moves


@dataclass(frozen=True, slots=True)
class _State:
    """The place where the episode stands, and what is left to do."""

    at: _Place
    key: _Place
    door: _Place
    has_key: bool = False
    turns: int = 0
    """Turns that were taken."""
    least: int = 0
    """Moves of a shortest path from the start; 0 until the first turn."""


@dataclass(frozen=True, slots=True)
class _Grid(Environment):
    """Answers moves until the door is passed."""

    task: GridWorld

    @property
    def max_turns(self) -> int:
        """The moves of the longest shortest path, and what is to spare."""
        return self.task.max_distance + _SPARE

    @property
    def stop(self) -> tuple[str, ...]:
        """The moves, each a turn of its own."""
        return tuple(_MOVES)

    @property
    def turn_tokens(self) -> int:
        """One character, a move."""
        return 1

    def start(self, prompt: Prompt) -> tuple[_State, str]:
        """Returns the places, without the key."""
        return _State(*prompt.answer), ""

    def step(self, state: _State, text: str) -> Transition:
        """Answers a move by the place that it leads to; through the door the episode ends."""
        least = state.least or _distance(state.at, state.key) + _distance(state.key, state.door)
        state = replace(state, turns=state.turns + 1, least=least)
        reward = -self.task.step_penalty
        if text not in _MOVES:
            return Transition(state=state, observation="x;", reward=reward, anchor=_shown(state))
        to = _moved(state.at, text)
        if to == state.door and state.has_key:
            return Transition(
                state=replace(state, at=to),
                reward=reward + 1.0,
                done=True,
                correct=True,
                process_correct=state.turns == state.least,
            )
        inside = 1 <= to[0] <= self.task.columns and 1 <= to[1] <= self.task.rows
        if inside and to != state.door:
            fetched = to == state.key and not state.has_key
            state = replace(state, at=to, has_key=state.has_key or fetched)
            reward += self.task.key_reward * fetched
        return Transition(
            state=state, observation=f"{_shown(state)};", reward=reward, anchor=_shown(state)
        )


def _shown(state: _State) -> str:
    """Returns the place, and the key where it was fetched."""
    return f"{state.at[0]}{state.at[1]}{'k' * state.has_key}"


def _nearer(state: _State, *, to_door: bool) -> list[str]:
    """Returns the moves that lead nearer to door or key, round a door that is on the way."""
    goal, at = state.door if to_door else state.key, state.at
    to = {move: _moved(at, move) for move in _MOVES}
    # A place from which the door stands in the way is as bad as the door itself.
    bad = {x for x in to if to[x] == state.door or _between(to[x], state.door, state.key)}
    free = [x for x in to if to_door or x not in bad]
    near = [x for x in free if _distance(to[x], goal) < _distance(at, goal)]
    return near or free or [*to]


def _between(one: _Place, middle: _Place, other: _Place) -> bool:
    """Tells whether a place stands on the line from one to another, which has to go round it."""
    straight = one[0] == middle[0] == other[0] or one[1] == middle[1] == other[1]
    return straight and _distance(one, middle) + _distance(middle, other) == _distance(one, other)


def _moved(at: _Place, move: str) -> _Place:
    return at[0] + _MOVES[move][0], at[1] + _MOVES[move][1]


def _distance(one: _Place, other: _Place) -> int:
    """Returns the moves between two places."""
    return abs(one[0] - other[0]) + abs(one[1] - other[1])
