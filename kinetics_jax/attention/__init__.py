"""Attention of a full forward, of prefill and of a decode step: policies, KV cache, shared prefixes."""
