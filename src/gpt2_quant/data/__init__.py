"""Data sets, labels, tokens, the hub, and the demo's corpus."""
