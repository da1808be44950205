"""Episodes on top of inference: prompts to scored trajectories, each with its ledger."""
