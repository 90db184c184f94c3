"""Generation: from a context and a text's tokens to the text that follows.

Owns the only loop of it: `sequence` (one text and its rules), `slot` (its place in a context), `generate` (the loop),
`given` (a text that is known already), `stops`, `logprobs`, `timings`, `prompt_cache`. Knows no command line, no messages
and no API. Importing any of these files loads neither NumPy nor a compiler.
"""
