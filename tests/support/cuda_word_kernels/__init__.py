"""Small kernels that call the words of the CUDA vocabulary, one file a kind of word."""
