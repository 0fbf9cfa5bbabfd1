"""A model that runs here, with its weights under the checkpoint's names. Used in jailed children only.

    Runnable, replace    what it is, and new weights in place     runnable.py
    program.py           a program of torch.export
    huggingface.py       a Hugging Face folder, by transformers   config.py, architecture.py, weights.py, tokens.py
"""

from worker.runnable.opening import open_runnable
from worker.runnable.runnable import Input, Runnable, replace

__all__ = ["Input", "Runnable", "open_runnable", "replace"]
