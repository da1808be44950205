"""Curation: rows pass filters in order, and it stays on record which filter dropped which row, and why."""
