"""What judges predictions: saved maps, the edge benchmark, single-task references and delta_m, significance, tables."""
