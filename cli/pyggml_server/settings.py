"""How a server is set up. Owns the names and defaults (llama-server's: common/common.h)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyggml.sampler import SamplerParams

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """host, port     addresses to listen on, comma-separated; port 0: any free one
    alias          names of the model; without one its file's
    api_keys       of which a request must bring one; none: everybody is served
    api_prefix     what every path begins with
    cors_origins   web pages that may use the server: "*" is any; none: no header is sent
    n_predict      tokens of an answer at most, where a request does not say; -1: until the context is full
    n_batch        tokens around the gap that /infill shows the model at most, three quarters of them before it
    n_keep         tokens of a prompt, beside BOS, that a full context keeps, where a request does not say; below 0: all
    sampling       where a request does not say otherwise
    ui             whether there is a page for browsers at /
    queue_limit    requests that wait for a slot at most; further ones are told to come again
    largest_body   bytes of a request
    body_timeout   seconds for a whole body to arrive, and for a client to take what it is sent
    ping           seconds without a token after which a stream gets a comment, so that nobody in between hangs up; 0: none
    normalize      what makes embeddings comparable (embedder.normalised), where a request does not say
    slot_folder    where what slots have is saved to files; None: it is not
    most_connections, header_timeout  connections at once, and seconds for the head of a request to arrive
    verbose        answers tell what they were made of (`__verbose`), where a request does not say
    grace          seconds that answers under way get when the server is asked to end
    """

    host: str = "127.0.0.1"
    port: int = 9931
    alias: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    api_prefix: str = ""
    cors_origins: tuple[str, ...] = ()
    cors_methods: str = "GET, POST, DELETE, OPTIONS"
    cors_headers: str = "*"
    cors_credentials: bool = True
    ssl_key: str | None = None
    ssl_cert: str | None = None
    n_predict: int = -1
    n_batch: int = 2048
    n_keep: int = 0
    sampling: SamplerParams = field(default_factory=SamplerParams)
    ignore_eos: bool = False
    special: bool = False
    cache_prompt: bool = True
    stops: tuple[str, ...] = ()
    spm_infill: bool = False
    reasoning_format: str = "auto"
    reasoning_budget: int = -1
    reasoning_budget_message: str = ""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    skip_parsing: bool = False
    prefill_assistant: bool = True
    metrics: bool = False
    slots: bool = True
    ui: bool = True
    queue_limit: int = 256
    largest_body: int = 32 * MIB
    body_timeout: float = 3600.0
    ping: float = 30.0
    grace: float = 10.0
    normalize: int = 2
    verbose: bool = False
    slot_folder: str | None = None
    most_connections: int = 1024
    header_timeout: float = 10.0

    @property
    def hosts(self) -> list[str]:
        """The addresses, one by one."""
        return [host.strip() for host in self.host.split(",") if host.strip()]
