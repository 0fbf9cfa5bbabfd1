"""The search for a recipe within a budget: what each matrix loses by each of many options, and which of them to take.

    options.py      what may become of a matrix, as steps of a recipe
    groups.py       which matrices are searched, and which take one and the same option
    inputs.py       what goes into the layers, a few groups at a time
    sampling.py     bytes and loss of an option, told from a sample of rows
    encoding.py     an option carried out on a whole matrix, and its bytes
    table.py        bytes and losses of all options of all groups, the losses on outputs measured for some and interpolated for the others
    effect.py       what the model says with other weights, beside the original
    cache.py        whole matrices as options leave them
    choosing.py     which options are taken, by the table
    bounds.py       what a budget says of a result
    finding.py      the search: the table once, a recipe for each budget
    size.py         within a size the best
    quality.py      of a quality the smallest
    telling.py      what the report says of it
    resolved.py     a choice as an ordinary recipe
    trial.py        a recipe carried out from end to end
"""
