"""What imitates llama-cpp-python: `Llama`, its parameters, and the dicts that it answers with.

Owns names, signatures and shapes of answers alone: computing is the runtime's. Each file stands on those before it:
arguments, state, cache, tokenizers, turns, facts; scored_slot; evaluation; draft_model, completion; chat_completion; embedding; chat_formats,
chat_handlers, chatml_functions, handled_chats; hub; llama.
"""
