"""The key of a result: a digest of everything that determines the result."""

import hashlib
import json
from typing import Any


def digest(content: Any) -> str:
    """SHA-256 of JSON-serialisable content, as 64 hex digits. The order of keys in objects does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
