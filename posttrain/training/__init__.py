"""The stages of a run and the machinery that runs them."""
