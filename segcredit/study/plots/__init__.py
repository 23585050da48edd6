"""Figures of a study, for a paper or a page; drawn without a display and without global state.

    runs = segcredit.read_runs("runs/segmenters")
    figure = learning_curves(runs, by="segmenter", width=COLUMN)
    save(figure, "curves.pdf")             # it is matplotlib's: add what the paper needs

    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    learning_curves(runs, by="segmenter", ax=left)

Those of an audit take its table, or the arrays of one completion:

    audit = segcredit.read_runs("runs/audit").audit
    audit_intervals(audit, "correlation", "gradient")

Every function returns a matplotlib ``Figure`` of a column's or a page's width; its title says what
was found, and a line below it what is drawn and over what its intervals are. ``figure=`` takes a
figure or subfigure to draw into, ``ax=`` the axes of what has one panel. What the user has set in
matplotlib's rcParams holds. Groups are told apart by colour and by marker and dashes alike, and
keep them from figure to figure of the same runs and ``by``.
"""

from segcredit.study.plots.audits import audit_intervals as audit_intervals
from segcredit.study.plots.audits import lift_curves as lift_curves
from segcredit.study.plots.audits import movement_shares as movement_shares
from segcredit.study.plots.completion_credit import completion_credit as completion_credit
from segcredit.study.plots.dots import comparison as comparison
from segcredit.study.plots.style import COLUMN as COLUMN
from segcredit.study.plots.style import PAGE as PAGE
from segcredit.study.plots.style import PALETTE as PALETTE
from segcredit.study.plots.training import heat_map as heat_map
from segcredit.study.plots.training import learning_curves as learning_curves
from segcredit.study.plots.training import segment_shapes as segment_shapes
from segcredit.study.plots.training import stability as stability
from segcredit.study.plots.training import value_consistency as value_consistency
from segcredit.study.plots.writing import as_svg as as_svg
from segcredit.study.plots.writing import require_figure_format as require_figure_format
from segcredit.study.plots.writing import save as save
