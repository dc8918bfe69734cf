"""Checkpoints in and out: Hugging Face layout (safetensors). Weights are never read from pickles."""
