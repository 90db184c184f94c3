"""What stands in for a `Llama` where a chat handler is asked: it notes the completions that are wanted, and says what it was
told to. Imports nothing, so that llama-cpp-python's own handlers can be asked with it too."""

from collections.abc import Iterator
from typing import Any

KEPT = ("temperature", "top_p", "top_k", "stop", "stream", "max_tokens", "logprobs", "model", "repeat_penalty")

USUAL = {
    "temperature": 0.2,
    "top_p": 0.9,
    "top_k": 3,
    "repeat_penalty": 1.1,
    "max_tokens": 9,
    "model": "m",
    "stop": "S",
}


class RecordingLlama:
    """`said`: what each completion says, in turn; the last one goes on being said."""

    verbose = False

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.calls: list[dict[str, Any]] = []

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return [*([-1] if add_bos else []), *([-2] if special else []), *text]

    def create_completion(self, prompt: Any, **given: Any) -> Any:
        text = self.said[min(len(self.calls), len(self.said) - 1)]
        call = {name: given.get(name) for name in KEPT}
        call["stop"] = [call["stop"]] if isinstance(call["stop"], str) else list(call["stop"] or [])
        call["held"] = given.get("grammar") is not None
        self.calls.append({"prompt": prompt, **call})
        head = {"id": f"cmpl-{len(self.calls)}", "object": "text_completion", "created": 7, "model": "m"}
        if given.get("stream"):
            return self._chunks(head, text)
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}
        return {**head, "choices": [choice], "usage": usage}

    def _chunks(self, head: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
        for piece, reason in ((text[:2], None), (text[2:], None), ("", "stop")):
            yield {**head, "choices": [{"text": piece, "index": 0, "logprobs": None, "finish_reason": reason}]}


def ask(handler: Any, said: list[str], **given: Any) -> list[Any]:
    """[answer, or chunks, or the name of the error, the completions that were asked for]"""
    llama = RecordingLlama(said)
    try:
        answer = handler(llama=llama, **{**USUAL, **given})
        answer = list(answer) if given.get("stream") else answer
    except (ValueError, AssertionError) as e:
        answer = "AssertionError" if isinstance(e, AssertionError) else "ValueError"
    return [answer, llama.calls]
