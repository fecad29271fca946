"""Text metrics, one file each; every value carries the signature that reproduces it."""
