"""Byte movers between the two legs of a flow."""
