"""Writes logits.npz: what transformers computes for the tiny checkpoints of tests/tiny.py. Needs torch.

python tests/golden/make_goldens.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from tiny import PARITY_CASES, tiny_config, write_checkpoint
from transformers import AutoModelForCausalLM

TIME = 37
goldens = {}
for name, changes in PARITY_CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_config(**changes)
        write_checkpoint(Path(folder), config, seed=7)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = np.random.default_rng(1).integers(0, config["vocab_size"], (2, TIME))
        with torch.no_grad():
            goldens[name] = model(torch.tensor(tokens)).logits.numpy()
np.savez_compressed(Path(__file__).with_name("logits.npz"), **goldens)
