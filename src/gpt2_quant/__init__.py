"""GPT-2, fine-tuned and quantized: the library of the five numbered scripts."""

from .models import variants  # noqa: F401  the registry tells the plug-in its schemes' names
