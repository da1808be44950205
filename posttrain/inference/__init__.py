"""Serving a checkpoint: an engine, a worker that holds one, a pool of workers, answers to questions."""
