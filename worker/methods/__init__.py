"""Methods by the params class that selects them.

    plan      which steps work on which tensor            targets.py
    prepare   what must be known of the whole model first   apply.py
    apply     one tensor through its steps                  apply.py

A new method is one file here, one params class in `app.recipe`, and one line below.
"""

from worker.methods.apply import apply, prepare
from worker.methods.registry import METHODS
from worker.methods.targets import plan

__all__ = ["METHODS", "apply", "plan", "prepare"]
