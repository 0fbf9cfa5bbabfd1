"""What a model is for, as far as its config.json tells without any library: by the end of the class name under `architectures`."""

from __future__ import annotations

import re

_ENDS = {
    "causal-lm": r"ForCausalLM|LMHeadModel",
    "classifier": r"For(?:Sequence|Image|Audio|Video)Classification",
    "encoder": r"(?<!LMHead)(?<!DoubleHeads)Model",
}


def task_of(config: dict | None) -> str | None:
    """causal-lm, classifier, regressor or encoder; None where a look at the network itself has to tell.

    Args:
        config: a stranger's config.json, parsed.
    """
    named = (config or {}).get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        return None
    task = next((task for task, end in _ENDS.items() if re.search(f"(?:{end})$", named[0][-100:])), None)
    labels = config.get("id2label")
    single = config.get("problem_type") == "regression" or config.get("num_labels") == 1 or (isinstance(labels, dict) and len(labels) == 1)
    return "regressor" if task == "classifier" and single else task
