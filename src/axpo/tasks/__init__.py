"""Questions with pictures and verifiable answers."""
