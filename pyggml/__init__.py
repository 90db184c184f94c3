"""pyggml: ggml in pure Python."""
