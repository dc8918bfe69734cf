"""What samples cost, what they achieve, and which configurations pay. NumPy only; imports no jax."""

from kinetics_jax.economics.bayes import bayesian_interval
from kinetics_jax.economics.cost import Cost, best_of_n_cost, generation_cost, phi
from kinetics_jax.economics.estimators import average, cluster_bootstrap, expected_max, paired_difference, pass_at_k
from kinetics_jax.economics.hardware import HARDWARE, Hardware
from kinetics_jax.economics.votes import majority_vote, weighted_vote

__all__ = [
    "HARDWARE",
    "Cost",
    "Hardware",
    "average",
    "bayesian_interval",
    "best_of_n_cost",
    "cluster_bootstrap",
    "expected_max",
    "generation_cost",
    "majority_vote",
    "paired_difference",
    "pass_at_k",
    "phi",
    "weighted_vote",
]
