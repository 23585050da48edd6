"""Completions to look at: their segments in colours, credit as shade, the value as a line.

    segcredit.show(rollouts, segmentation, advantages_BT, values=values)
    segcredit.show(rollouts, {"entropy": segmentation, "newline": other})
    segcredit.show(segcredit.read_runs("runs"), ["sentence"])

In a notebook and in ``segcredit report`` one browser draws them; a terminal has colours and marks.
"""
