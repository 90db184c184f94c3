"""A model with an encoder behind the server: each slot has a text of its own."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import serving
from tiny_t5 import ensure_t5

from pyggml import Llama
from pyggml.model.model import Model

PROMPTS = ["the cat", "a dog, and the singer.", "x", "the singer", "a cat and a dog"]


@pytest.mark.parametrize("kv_unified", [False, True])
def test_slots_answer_texts_of_their_own(kv_unified: bool) -> None:
    """More texts than slots at once, then again in another order; as each is answered alone."""
    path = ensure_t5()["t5-gated"]
    with Llama(path, n_ctx=256, verbose=False) as llm:
        alone = {prompt: llm(prompt, max_tokens=10, temperature=0.0) for prompt in PROMPTS}
    model = Model.load(path)
    with serving(model, n_slots=3, n_ctx=1024, kv_unified=kv_unified, slots=True) as client:

        def ask(prompt: str) -> tuple[str, int]:
            answer = client.ok("/v1/completions", {"prompt": prompt, "max_tokens": 10})
            return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]

        wanted = [(alone[p]["choices"][0]["text"], alone[p]["usage"]["prompt_tokens"]) for p in PROMPTS]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            assert list(pool.map(ask, PROMPTS)) == wanted
            assert list(pool.map(ask, PROMPTS[::-1])) == wanted[::-1]
        two = client.ok("/v1/completions", {"prompt": PROMPTS[1], "max_tokens": 10, "n": 2})
        assert [choice["text"] for choice in two["choices"]] == [wanted[1][0]] * 2
        own = client.ok("/completion", {"prompt": PROMPTS[0], "n_predict": 10})
        assert (own["content"], own["tokens_evaluated"]) == wanted[0]
        status, answer = client.post("/completion", {"prompt": "x " * 600, "n_predict": 1})
        assert status == 400 and "tokens" in answer["error"]["message"], answer
        chat = client.ok("/v1/chat/completions", {"messages": [{"role": "user", "content": "the"}], "max_tokens": 4})
        assert chat["usage"]["completion_tokens"] == 4
    model.close()
