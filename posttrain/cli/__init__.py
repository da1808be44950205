"""The command line: one file a group of commands; `main` has the parser."""
