"""How two short texts are compared as mathematics; `rewards.builtin.math` is the reward made of it."""
