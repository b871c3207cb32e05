"""The command line: one file for each subcommand, thin: parse, build a config, call, report, exit code.

May import typer, rich and every other package of the project; nothing imports it.
"""
