"""What the scripts that train the built-in checkpoints share."""
