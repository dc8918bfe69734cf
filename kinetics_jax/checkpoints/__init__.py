"""Checkpoints in and out: Hugging Face layout (safetensors) and Orbax. Weights are never read from pickles."""
