"""Tool calls as text: how models write them, how they are read back, and grammars that make them valid. No torch."""
