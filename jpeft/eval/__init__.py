"""Loss over a split, generation over a split, and the metrics of the tasks."""
