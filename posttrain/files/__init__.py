"""Writing that survives a crash, logs of lines, strict JSON and progress bars."""
