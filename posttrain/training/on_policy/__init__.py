"""RL: a controller's loop of rollout, reward, update and publish."""
