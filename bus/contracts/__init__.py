"""Event contracts: JSON Schemas, versions, encoding and compatibility checks."""
