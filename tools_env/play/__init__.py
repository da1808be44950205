"""Environments that ship: four card games and a maze, drawn here, with rewards from their state."""
