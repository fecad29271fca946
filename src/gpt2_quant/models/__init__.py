"""The registry of variants; loading, sizes, bitsandbytes."""
