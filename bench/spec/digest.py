"""Names for results: the digest of all that decides them."""

import hashlib
import json
from typing import Any


def digest(content: Any) -> str:
    """SHA-256 of JSON-able content, as canonical text: the name under which a step's result is kept."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
