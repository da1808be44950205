"""The rewards that ship with the toolkit, one file each; they are found by name through entry points."""
