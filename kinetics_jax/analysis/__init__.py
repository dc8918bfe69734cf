"""From samples to decisions: tables of samples, frontiers, allocations of a budget, advice on what to run."""
