"""What tokenizing processes need, imported once by the process that they are forked from; nobody else imports this.

Tokenizers run without torch, whose import takes two seconds and 250 MB, but transformers imports it where it finds it.
So it is hidden while transformers looks.
"""

from __future__ import annotations

import os
import sys

os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # no remark that there is no torch
hidden = "torch" not in sys.modules
if hidden:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    import transformers.models.auto.tokenization_auto  # noqa: F401

    import eagle3cli.data.tokens.workers  # noqa: F401
finally:
    if hidden:
        del sys.modules["torch"]
