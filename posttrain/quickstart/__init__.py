"""The quickstart's own room: a tiny Qwen-VL, the scenes it learns from, and its first lessons."""
