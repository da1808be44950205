"""A model being trained, as every stage needs it: loading, optimisers, guarded updates, collectives."""
