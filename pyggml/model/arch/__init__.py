"""One file an architecture, called as general.architecture with - as _; each has a class `Model` of (hp, tensors)."""
