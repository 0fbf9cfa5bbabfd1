"""Methods by the params class that selects them.

    plan      which steps work on which tensor            targets.py
    prepare   what must be known of the whole model first  prune.py
    apply     one tensor through its steps

A new method is one file here, one params class in `app.recipe`, and one line below.
"""

from worker.methods.apply import METHODS, apply, prepare
from worker.methods.targets import TensorPlan, plan

__all__ = ["METHODS", "TensorPlan", "apply", "plan", "prepare"]
