"""Kernels that do nothing but use the primitives of pyggml.simd, for tests/simd/test_simd.py. Imported by the compiler only."""
