"""The names of the classes."""

LABELS = ("World", "Sports", "Business", "Sci/Tech")
