"""Compare position methods: one small model each, trained on a text or a retrieval task and tested far beyond it.

Or one checkpoint of transformers, tuned with each.

settings.py           what is compared
run.py                all models, one after the other, in a folder that can be resumed
workers.py, worker.py the same by several processes, on several machines
claims.py             who computes what
models.py             what is trained: new models, or a checkpoint
compute.py            one model: trained, tested, extended
cells.py              one model's folder
tasks.py              text, recall, copy
extending.py          extensions of trained models to longer texts
saved_views.py        views of a trained model that are saved for the report
terminal.py, page.py  the results as a table and as one HTML file
"""
