"""What position costs: time, memory and error of attention with a position method, beside plain attention.

    settings.py     what to measure, plain values
    cases.py        one shape of attention, its inputs, and the methods as something to add to it
    contenders.py   who computes it: our backends, and torch in the ways people use it
    others.py       other libraries: FlexAttention, x-transformers, transformers
    measure.py      time, memory, error and repeatability of one contender
    tax.py          all rows, one after the other, saved as they come
    bars.py         the speed this project promises
    train.py        whole training steps of small decoders

``python -m headway.experiments.bench`` needs nothing but torch; ``headway bench`` is the same with a progress bar.
"""
