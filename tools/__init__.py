"""The command line: one thin file for each subcommand, which parses, builds a config, calls, reports and returns an exit code.

May import typer, rich and every other package of the project; nothing imports it.
"""
