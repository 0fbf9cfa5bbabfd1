"""Recovery: training that gives back what pruning and codebooks took, by the original model's own outputs or by labels.

    course     what is to be trained and when, of the steps of a recipe    course.py
    teacher    what the original says, kept or computed                    teacher.py
    objective  the loss of a batch                                         objective.py
    weights    what a weight may be: free, masked, coded                   free.py, masked.py, coded.py
    train      the loop: early-stopped, resumed after a crash              training.py, snapshot.py
    outcome    trained weights as the writer takes them                    outcome.py

`worker.kernels` has the arithmetic (adam, assignment, distillation, schedule).
"""
