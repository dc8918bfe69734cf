"""Attention policies, one file each: settings, decode rule, and counts of what a step attends to."""
