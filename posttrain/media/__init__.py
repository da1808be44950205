"""Opening, checking, storing and sampling images and videos."""
