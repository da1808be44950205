"""Environments that ship, drawn here: four card games, a maze, a desktop; rewards are from their state."""
