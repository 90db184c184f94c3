"""granitemoe: granite with experts, always with positions."""

from pyggml.model.arch.granite import Block as Base
from pyggml.model.arch.granite import Model as BaseModel


class Block(Base):
    may_lack_rope = False


class Model(BaseModel):
    block = Block
