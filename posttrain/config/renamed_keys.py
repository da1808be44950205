"""Keys of earlier versions, so that a file written for one is told what to write now."""

#: Old key → its new name as a dotted path, or a sentence that says what to do instead. A dotted path needs
#: no more parts than tell it apart: `max_steps` is found in whatever section has it.
RENAMED_KEYS: dict[str, str] = {
    "micro_batch_size": "write per_device_batch_size, but an rl stage takes packed rows of max_batch_tokens",
    "steps": "max_steps",
    "batch_size": "global_batch_size",
    "warmup_steps": "write warmup_ratio, a share of the steps: 0.05 for 2 steps of 40",
    "reward_client": "the project's own client is always used; remove the key",
    "reward_server": "the project's own server is always used; remove the key",
}
