"""Checkpoints: Hugging Face layout (safetensors) and Orbax read and written, GGUF read. Never from pickles."""
