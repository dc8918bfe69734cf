"""Estimators and intervals: pass@k, expected maxima, bootstraps."""
