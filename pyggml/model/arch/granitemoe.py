"""granitemoe: granite with experts."""

from pyggml.model.arch.granite import Model as Model
