"""hunyuan-dense: hunyuan_vl without positions of several axes."""

from pyggml.model.arch.hunyuan_vl import Model as Model
