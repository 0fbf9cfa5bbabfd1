"""The search for a recipe within a budget: what each matrix loses by each of many options, and which of them to take.

    options.py      what may become of a matrix, as steps of a recipe
    groups.py       which matrices are searched, and which take one and the same option
    sampling.py     bytes and loss of an option, told from a sample of rows
    encoding.py     an option carried out on a whole matrix, and its bytes
    table.py        bytes and losses of all options of all groups, the losses on outputs measured for some and interpolated for the others
    effect.py       what the model says with other weights, beside the original
    resolved.py     a choice as an ordinary recipe
    trial.py        a recipe carried out from end to end
"""
