"""A decoder's cache is `past_key_values` to transformers before 5.24, and `cache` from then on: this code runs under
both, and takes either name under either."""

import functools
import inspect
from collections.abc import Callable

from transformers.modeling_outputs import Seq2SeqLMOutput

CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"  # as it is called here


def rename_cache(arguments: dict, name: str = CACHE) -> None:
    """Let the cache among these arguments have this name, whatever name it was given.

    Raises:
        ValueError: where it was given twice.
    """
    (other,) = {"cache", "past_key_values"} - {name}
    if other in arguments:
        if arguments.get(name) is not None:
            raise ValueError("`cache` and `past_key_values` are two names of one thing: pass one of them.")
        arguments[name] = arguments.pop(other)


def takes_cache(function: Callable) -> Callable:
    """A function whose parameter `cache` may be given by either name. Its signature, which `generate` goes by, has the
    name of this version."""
    signature = inspect.signature(function)
    parameters = [p.replace(name=CACHE) if p.name == "cache" else p for p in signature.parameters.values()]

    @functools.wraps(function)
    def renamed(*args, **kwargs):
        rename_cache(kwargs, "cache")
        return function(*args, **kwargs)

    renamed.__signature__ = signature.replace(parameters=parameters)
    return renamed
