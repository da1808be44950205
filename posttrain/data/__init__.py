"""From files to batches: formats, sources and mixing, rendering, collation."""
