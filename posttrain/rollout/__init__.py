"""From prompts to scored trajectories: engines, episodes, the pool of workers, advantages."""
