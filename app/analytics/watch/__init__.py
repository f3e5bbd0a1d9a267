"""Alerts on projections: rules, what is known of each, and the messages that report a change to a URL."""
