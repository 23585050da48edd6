"""Figures of a study, for a paper or a page; drawn without a display and without global state.

    runs = segcredit.read_runs("runs/segmenters")
    figure = learning_curves(runs, by="segmenter", width=COLUMN)
    figure.axes[0].axhline(0.46, linewidth=0.5)     # it is matplotlib's: add what the paper needs
    save(figure, "curves.pdf")

Those of an audit take its table, or the arrays of one completion:

    audit = segcredit.read_runs("runs/audit").audit
    audit_intervals(audit, "correlation", "gradient")

Every function returns a matplotlib ``Figure`` of a column's or a page's width, with its legend and
a line that says what is drawn and over what its intervals are. Groups are told apart by colour and
by marker and dashes alike, and keep them from figure to figure of the same runs and ``by``.
"""

from segcredit.errors import require_package

require_package("matplotlib", "report", "a figure")  # of every module below

from segcredit.study.plots.audit_intervals import audit_intervals as audit_intervals
from segcredit.study.plots.completion_credit import completion_credit as completion_credit
from segcredit.study.plots.heat_map import heat_map as heat_map
from segcredit.study.plots.learning_curves import learning_curves as learning_curves
from segcredit.study.plots.lift_curves import lift_curves as lift_curves
from segcredit.study.plots.movement_shares import movement_shares as movement_shares
from segcredit.study.plots.segment_shapes import segment_shapes as segment_shapes
from segcredit.study.plots.stability import stability as stability
from segcredit.study.plots.style import COLUMN as COLUMN
from segcredit.study.plots.style import PAGE as PAGE
from segcredit.study.plots.style import PALETTE as PALETTE
from segcredit.study.plots.value_consistency import value_consistency as value_consistency
from segcredit.study.plots.writing import as_svg as as_svg
from segcredit.study.plots.writing import require_figure_format as require_figure_format
from segcredit.study.plots.writing import save as save
