"""The `kinetics` command: one file per subcommand."""
