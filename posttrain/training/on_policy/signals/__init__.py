"""Learning signals: what each episode teaches the tokens that were sampled in it."""
