"""The message bus: it transports messages and knows no module and no business meaning."""
