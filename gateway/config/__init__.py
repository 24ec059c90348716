"""The configuration file: YAML with positions to validated, immutable models."""
