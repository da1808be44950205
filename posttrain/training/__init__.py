"""The stages of a run: two wings, supervised and on-policy, over one core."""
