"""The error that everything about data raises."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the line and the reason."""
