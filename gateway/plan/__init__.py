"""The desired kernel state as values: build, diff, and render to text. No side effects."""
