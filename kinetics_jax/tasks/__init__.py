"""Tasks: problems, how they are put to a model, how its answers are graded."""
