"""The command `vla`: one module per subcommand."""
