"""The cost of position: time, memory and error of attention with a position method, compared with plain attention.

settings.py     what to measure, plain values
cases.py        one shape of attention, its inputs, and position methods to run on it
contenders.py   implementations: our backends, and common ways to do it in torch
others.py       other libraries: FlexAttention, x-transformers, transformers
measure.py      time, memory, error and repeatability of one contender
floor.py        what a method's own products would cost
layers.py       whole layers with DeBERTa's method, ours and transformers'
tax.py          one row: a method by a contender, compared with plain attention
bars.py         this project's speed targets
run.py          all rows, one after the other, saved as they are measured
page.py         the results as text and as a page
gpu.py          everything about a GPU in one command, ``python -m headway.bench gpu``
training.py     whole training steps of small decoders
"""
