"""The live target: transformers or SGLang in this process, its head, its logits and its caches.

Batches are made in ``batches``, stores in ``capture``.
"""
