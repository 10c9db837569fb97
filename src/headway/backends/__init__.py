"""Ways to compute attention: each a file with ``refuses``, ``run`` and ``describe``, imported when first needed."""
