"""Kernels that do nothing but use the primitives of pyggml.simd, for tests/simd. Imported by the compiler only."""
