"""A model at work: from tokens of many sequences to logits, and from logits to the texts that follow.

Computing: `batch` (what is to be computed, and its cut into micro-batches), `context`, `context_sequence` (one sequence of
it), `encoding` (texts that a decoder answers), `schedules` (graphs that are kept), `state*` (saved), `embedder` and `ranking`
(vectors and scores of whole texts), `warm_up` (before the first text).
Generation, of which this is the only loop: `sequence` (one text and its rules), `slot` (its place in a context), `checkpoints`,
`generate` (the loop of one text), `batcher` (of many; `places`: which sequence a text gets; `idle_prompts`), `drafter`, `drafts`,
`draft_model` and `draft_pace` (guesses at what follows), `given` (logits along a text), `stops`, `logprobs`, `timings`,
`prompt_cache`. Knows no command line, no messages and no API. Importing the files of generation, but for `batcher`, `places`
and `draft_model`, loads neither NumPy nor a compiler.
"""
