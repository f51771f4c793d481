"""Estimates a recipe's costs before it runs: sizes, memory and operations, against a card."""
