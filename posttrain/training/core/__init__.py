"""A model being trained, for every stage: loaded, frozen, adapted, optimised, guarded, saved."""
