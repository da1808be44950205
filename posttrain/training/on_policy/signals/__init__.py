"""What each sampled token is to learn from its episode and its group."""
