"""What a recipe costs before it runs: sizes, memory, operations, and its sum against a card."""
