"""Text metrics, one file each: every value comes with the signature that makes it reproducible."""
