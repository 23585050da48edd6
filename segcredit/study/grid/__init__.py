"""Ablation grids: every combination of some keys' values, each a run directory of its own.

    segcredit grid grid.toml --workers 2

What a grid file may say is in ``axes``; which cells it has, in ``cells``; the order of the work, in
``runner``; who does it, in ``process_workers`` and ``ray_workers``. From Python:
``segcredit.run_grid``.
"""

from pathlib import Path

from segcredit.study.grid.cells import Cell as Cell
from segcredit.study.grid.cells import plan as plan
from segcredit.study.grid.runner import GridProgress as GridProgress
from segcredit.study.grid.runner import Watch as Watch
from segcredit.study.grid.runner import run_grid as run_grid
from segcredit.study.grid.runner import survey as survey

DEMO = Path(__file__).with_name("demo.toml")
"""The grid of ``segcredit demo``."""
