"""What answers tell besides what was said: times, how far a prompt is, what the answer was made with, and all of it for `__verbose`.

Owns these dicts, which are llama-server's (tools/server/server-task.cpp: result_timings, result_prompt_progress, task_params::to_json,
to_json_non_oaicompat).
"""

from dataclasses import asdict
from typing import Any

from pyggml.runtime.sequence import Finish
from pyggml.runtime.sequence import Sequence as Text
from pyggml.sampler import SamplerParams
from pyggml_server.answers import Answer
from pyggml_server.engine import Progress
from pyggml_server.requests import Options
from pyggml_server.served import Served

STOPS = {Finish.EOG: "eos", Finish.STOP: "word", Finish.LENGTH: "limit", Finish.FULL: "limit", Finish.CANCELLED: "none"}
NAMES = {
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "penalty_freq": "frequency_penalty",
    "penalty_present": "presence_penalty",
    "typ_p": "typical_p",
}
"""SamplerParams' names -> those of requests."""


def _times(cached: int, n_prompt: int, prompt: float, n: int, seconds: float) -> dict[str, Any]:
    """The first token of an answer comes of the prompt: rates are of those after it."""
    further = max(0, n - 1)
    return {
        "cache_n": cached,
        "prompt_n": n_prompt,
        "prompt_ms": prompt * 1e3,
        "prompt_per_token_ms": prompt * 1e3 / n_prompt if n_prompt else 0.0,
        "prompt_per_second": n_prompt / prompt if prompt else 0.0,
        "predicted_n": n,
        "predicted_ms": seconds * 1e3,
        "predicted_per_token_ms": seconds * 1e3 / further if further else 0.0,
        "predicted_per_second": further / seconds if seconds and further else 0.0,
    }


def timings(text: Text) -> dict[str, Any]:
    """Of an answer, in ms and tokens."""
    t = text.timings
    made = _times(text.n_reused, t.n_prompt, t.prompt, text.n_chosen, t.eval + t.sample)
    return {**made, "draft_n": text.n_drafted, "draft_n_accepted": text.n_kept} if text.n_drafted else made


def progress(so_far: Progress, times: bool) -> dict[str, Any]:
    """How far a prompt is, with `times` also in timings."""
    made: dict[str, Any] = {
        "prompt_progress": {
            "total": so_far.total,
            "cache": so_far.cached,
            "processed": so_far.processed,
            "time_ms": so_far.seconds * 1e3,
        }
    }
    if times:
        made["timings"] = _times(so_far.cached, so_far.processed - so_far.cached, so_far.seconds, 0, 0.0)
    return made


def generation_settings(params: SamplerParams, max_tokens: int, stops: list[str], n_probs: int = 0) -> dict[str, Any]:
    """What an answer is made with, under the names of requests."""
    made = {NAMES.get(name, name): value for name, value in asdict(params).items()}
    made["logit_bias"] = [
        {"bias": None if bias == float("-inf") else bias, "token": token} for token, bias in made["logit_bias"]
    ]
    return {**made, "n_predict": max_tokens, "max_tokens": max_tokens, "stop": stops, "n_probs": n_probs}


def final(served: Served, running: Answer, i: int, wanted: Options, content: str, tokens: list[int]) -> dict[str, Any]:
    """All that there is to tell of an answer when it is complete: the last dict of /completion."""
    text = running.texts[i]
    return {
        "index": i,
        "content": content,
        "tokens": tokens,
        "id_slot": text.seq,
        "stop": True,
        "model": served.name,
        "tokens_predicted": text.n_chosen,
        "tokens_evaluated": text.n_prompt,
        "generation_settings": generation_settings(
            wanted.params, wanted.max_tokens, wanted.stops, wanted.n_logprobs or 0
        ),
        "prompt": shown(served, text.prompt),
        "has_new_line": b"\n" in text.data,
        "truncated": text.finish is Finish.FULL or text.n_shifted > 0,
        "stop_type": STOPS[text.finish or Finish.LENGTH],
        "stopping_word": stopping_word(text, wanted),
        "tokens_cached": len(text.tokens) - 1 - text.n_shifted,
        "timings": timings(text),
    }


def shown(served: Served, tokens: list[int]) -> str:
    """Tokens with their names, as llama-server shows a prompt: piece after piece."""
    return b"".join(map(served.tokenizer.token_bytes, tokens)).decode("utf-8", "replace")


def verbose(
    served: Served, running: Answer, i: int, wanted: Options, content: str, tokens: list[int]
) -> dict[str, Any]:
    """`__verbose`, where it is wanted."""
    return {"__verbose": final(served, running, i, wanted, content, tokens)} if wanted.verbose else {}


def stopping_word(text: Text, wanted: Options) -> str:
    """The stop text that ended it: what was cut off is the beginning of one."""
    if text.finish is not Finish.STOP:
        return ""
    return next((stop for stop in wanted.stops if text.cut_off.startswith(stop.encode())), "")
