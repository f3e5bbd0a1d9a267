"""The wire: it knows no module and no meaning."""
