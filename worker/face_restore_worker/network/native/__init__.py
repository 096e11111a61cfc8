"""Compiled kernels for processors with AVX-512; torch computes the same without them."""
