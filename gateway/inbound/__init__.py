"""Listeners: accept a diverted flow and recover where it was going."""
