"""What samples cost and what they buy: hardware, cost, estimators and the accuracy-per-cost frontier. No jax."""
