"""Small kernels that call the CUDA intrinsics, one file a kind."""
