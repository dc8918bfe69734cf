"""Estimators and intervals: pass@k, expected maxima, accuracies and their differences, bootstraps."""
