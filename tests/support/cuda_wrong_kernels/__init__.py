"""Kernels that compile to what no kernel here should; owns nothing that is used."""
