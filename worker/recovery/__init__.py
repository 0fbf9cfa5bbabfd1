"""Recovery: training that gives back what pruning and codebooks took, by the original model's own outputs or by labels.

    phases     what happens to the weights meanwhile                       phases.py
    refit      least squares, before any training                          refit.py
    teacher    what the original says, kept or computed                    teacher.py
    objective  the loss of a batch, and batches in parts                   objective.py, portions.py
    weights    what a weight may be: masked, coded, rounded                weights.py, coded.py, rounded.py
    train      the loop: early-stopped, resumed after a crash              training.py, snapshot.py
    outcome    trained weights as the writer takes them                    outcome.py

`worker.kernels` has the arithmetic (adam, assignment, distillation, least_squares, schedule).
"""
