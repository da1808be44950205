"""What a run leaves behind and runs in: its directory, the rows of its files, process, tracking, cluster."""
