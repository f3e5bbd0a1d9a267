"""What the house tells those who run it: logs, metrics, and the thread of a trace through both."""
