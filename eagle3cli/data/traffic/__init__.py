"""From a server's logs to rows: requests joined with their replies, secrets out, no prompt and no client too often.

Knows nothing about models: whether a reply is the target's own is judged in ``training``.
"""
