"""Grids of runs: their cells, the state of each cell on disk, and the scheduler and workers (docs/grid.md)."""
