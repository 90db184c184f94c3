"""The errors that users see: each message is one line that names the culprit and the numbers.

Owns the hierarchy only. A failure of our own is an `assert`, never one of these.
"""


class PyggmlError(Exception):
    """Base of every error that is somebody else's doing: a file, a flag, a message, a peer."""


class ShapeError(PyggmlError):
    """Operands whose types, shapes, strides or parameters do not fit the op."""


class UnsupportedError(PyggmlError):
    """Well-formed, but nothing here computes it."""


class GGUFError(PyggmlError):
    """A model file that is damaged, or not a GGUF file."""


class ModelError(PyggmlError):
    """A model file whose metadata or tensors do not make a model that is known here."""


class TokenizerError(PyggmlError):
    """A vocabulary that is damaged or of an unknown kind, or text that it cannot encode."""


class ContextError(PyggmlError):
    """More tokens than the context holds."""


class OvertakenError(PyggmlError):
    """A stream whose context another call uses by now."""


class StateError(PyggmlError):
    """A saved state that is damaged, or that belongs to another model or kind of context."""


class DeviceError(PyggmlError):
    """An unknown device, memory that is not there, or a device that failed."""


class WorkMemoryError(DeviceError):
    """A graph that needs more work memory than it may have: `size` bytes of `limit`."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the graph needs {size} bytes of work memory, {limit} are allowed")
        self.size, self.limit = size, limit


class CacheError(PyggmlError):
    """The folder of things that can be made again cannot be used."""


class ComputeError(PyggmlError):
    """A graph that stopped: an index out of range, or aborted."""


class SamplerError(PyggmlError):
    """A sampling parameter out of its range, an unknown stage, or logits that leave no token to choose."""


class GrammarError(PyggmlError):
    """A grammar or JSON schema that is wrong, or too large or too ambiguous to follow."""
