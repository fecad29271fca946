"""Class names."""

LABELS = ("World", "Sports", "Business", "Sci/Tech")
