"""Losses as pure functions of flat packed tensors.

Every tensor has one entry a trained token, [T], whatever the batch's shape was; `sequence_ids` [T] says
which sequence a token belongs to (any integers from 0, in any order; a sequence's tokens all in one call).
Normalisers over the *global* batch are passed in, and what comes back is this piece's share of the loss:
the shares of all micro-batches and ranks add up to the loss of the whole batch. So gradients are added up,
never averaged; where DDP averages over ranks, multiply by their number.
"""
