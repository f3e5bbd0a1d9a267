"""The responses: successful ones, and problem documents (RFC 9457)."""
