"""GPT-2, fine-tuned and quantized: the library that the five numbered scripts share."""
