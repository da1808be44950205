"""Losses as pure functions of flat packed tensors.

Every tensor has one entry per trained token, [T], whatever the shape of the batch was. `sequence_ids` [T]
says which sequence a token belongs to: any integers from 0, in any order; all tokens of a sequence must be in
the same call.

Normalisers over the *global* batch are passed in, and a loss returns this piece's share of the whole loss:
the shares of all micro-batches and ranks add up to the loss of the whole batch. So gradients are added,
never averaged over ranks.
"""
