"""What generating samples costs: FLOPs, bytes, seconds and memory, by model, attention policy and hardware."""
