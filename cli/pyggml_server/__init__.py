"""A model served over HTTP to many users at once: OpenAI's, Anthropic's and llama-server's own routes over one batcher.

Owns the routes and what is between them and the runtime; must not know flags, terminals or how a model is loaded.
"""

FINGERPRINT = "b0-pyggml"
"""What programs take for a build of llama-server: its number and commit."""
