"""Studies: grids of runs, their tables, statistics, figures, and audits of credit."""
