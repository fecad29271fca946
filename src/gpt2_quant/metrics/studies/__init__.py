"""What the metrics notice, and whether they agree with people."""
