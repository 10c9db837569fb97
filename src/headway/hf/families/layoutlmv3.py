"""LayoutLMv3: buckets of distances in the text and on the page, looked up for all pairs by the model's own encoder.

Distances on the page are those of boxes, not of tokens' order; the sum, (batch, heads, tokens, tokens), is made once
per forward, without gradients, and shared by the layers. Scores and weights are not materialised.
"""

from __future__ import annotations


class LayoutLMv3SelfAttention:
    """Put before LayoutLMv3's attention, which is as the class's own."""

    position = "LayoutLMv3's bias, of all pairs of tokens, made once per forward by the model's own code"


ATTENTIONS = {"LayoutLMv3SelfAttention": LayoutLMv3SelfAttention}
