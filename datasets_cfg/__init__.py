"""Datasets, one YAML file each: source, format and licence."""
