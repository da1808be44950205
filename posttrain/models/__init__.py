"""Loading, freezing and adapting checkpoints; log-probs in chunks; export and merging."""
