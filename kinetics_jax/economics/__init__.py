"""What samples cost, what they achieve, and which configurations pay. NumPy only; imports no jax."""

from kinetics_jax.economics.cost import Cost, best_of_n_cost, generation_cost, phi
from kinetics_jax.economics.estimators import cluster_bootstrap, expected_max, pass_at_k
from kinetics_jax.economics.hardware import HARDWARE, Hardware

__all__ = [
    "HARDWARE",
    "Cost",
    "Hardware",
    "best_of_n_cost",
    "cluster_bootstrap",
    "expected_max",
    "generation_cost",
    "pass_at_k",
    "phi",
]
