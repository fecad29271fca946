"""One update of training as one CUDA graph."""
