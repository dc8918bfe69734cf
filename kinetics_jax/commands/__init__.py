"""Commands of `kinetics`, a file each; cli.py registers them."""
