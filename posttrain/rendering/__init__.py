"""From rows and ledgers to tokens, masks, pixels and batches, by the family's own templates."""
