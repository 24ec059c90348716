"""One flow, walked through every layer without being sent."""
