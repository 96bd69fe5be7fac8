"""Engines schedule units; they never look inside them."""
