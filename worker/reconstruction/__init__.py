"""Pruning and quantization that go through a model block by block, by what goes into each layer (GPTQ, SparseGPT, Wanda; `worker.moments`).

    course.py    which layers belong together, in the order in which they run, and how a block is run without the rest
    walk.py      through the course: moments, solutions, and on with the new values
    solving.py   one matrix through its steps
    grids.py     the levels of its quantization, for `worker.kernels.compensation`
    finished.py  what is done already, in files that outlive the process
"""
