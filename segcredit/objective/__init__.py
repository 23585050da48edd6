"""Pure torch maths of the objective: returns, policy loss, ratio clipping, aggregation."""
