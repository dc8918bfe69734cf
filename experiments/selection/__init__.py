"""How well policies choose: attention mass, perplexity and needles on real text. Run by selection_quality.py."""
