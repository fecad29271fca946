"""GPT-2, fine-tuned and quantized: the library that the five numbered scripts share."""

from .models import variants  # noqa: F401  the registry tells the plug-in its schemes' names
