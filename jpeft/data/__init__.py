"""Tasks, where their rows come from, how they are split, and the batches that the model sees. Needs no model."""
