"""How the CPU's vector code reads and writes the blocks of each type, a file a family. Imported by factories only (Numba)."""
