"""Who may call what: API keys, roles, hosts and limits, and the log of what was refused."""
