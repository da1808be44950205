"""The environment variables of a model behind an address."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variables:
    """Environment variables of an address, and of the key that is sent to this address and no other.

    So no configuration can send the key elsewhere.

    Attributes:
        url: Name of the address's.
        key: Name of the key's.
    """

    url: str
    key: str

    def address(self, base_url: str) -> str:
        """Return the address in use: as configured, else the environment's; "" if neither tells."""
        return (base_url or os.environ.get(self.url, "")).rstrip("/")

    def api_key(self, address: str) -> str:
        """Return the key, where the address is the one that it is for."""
        return os.environ.get(self.key, "").strip() if self.address("") == address else ""
