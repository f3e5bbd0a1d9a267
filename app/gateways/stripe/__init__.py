"""The gateway adapter for Stripe."""
