"""What position costs: time, memory and error of attention with a position method, beside plain attention.

settings.py     what to measure, plain values
cases.py        one shape of attention, its inputs, and the methods as something to add to it
contenders.py   who computes it: our backends, and torch in the ways people use it
others.py       other libraries: FlexAttention, x-transformers, transformers
measure.py      time, memory, error and repeatability of one contender
tax.py          one row: a method by a contender, beside plain attention
bars.py         the speed this project promises
run.py          all rows, one after the other, saved as they come
page.py         the results as text and as a page
training.py     whole training steps of small decoders
"""
