"""Agreement of segmentations with each other and with people: tables, intervals, a figure.

    data = read_annotations("rtseg_gold.jsonl")
    cuts = {**data.boundaries, "newline": registry.segmenters.build("newline")}
    pairs = agreement(data.documents, cuts)
    summary(pairs)                                  # with intervals over documents
    paired_difference(pairs, "A", "B", "newline")   # is B nearer to A than newline is?
    agreement_figure(pairs, "agreement.png")

What each metric means, with worked examples: docs/explain/agreement.md.
"""

from segcredit.study.agreement.boundaries import Annotations as Annotations
from segcredit.study.agreement.boundaries import after_space as after_space
from segcredit.study.agreement.boundaries import read_annotations as read_annotations
from segcredit.study.agreement.lengths import lengths as lengths
from segcredit.study.agreement.lengths import segment_table as segment_table
from segcredit.study.agreement.plot import agreement_figure as agreement_figure
from segcredit.study.agreement.summary import matrix as matrix
from segcredit.study.agreement.summary import paired_difference as paired_difference
from segcredit.study.agreement.summary import summary as summary
from segcredit.study.agreement.table import agreement as agreement
