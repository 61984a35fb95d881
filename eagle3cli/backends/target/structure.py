"""Where the parts of a transformers model are: the text model's layers, and the module that runs them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from eagle3cli.errors import ModelError


def decoder_of(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The text model without its head, and its layers: the innermost module that holds the input embedding and a list
    of as many modules as the config has layers. So a multi-modal wrapper's towers are left out, whatever its names are.
    """
    embedding = model.get_input_embeddings()
    config = model.config.get_text_config()
    # LongCat counts what is within its layers, two of attention each; ``num_layers`` are the layers.
    count = getattr(config, "num_layers", None) or config.num_hidden_layers
    innermost: tuple[nn.Module, nn.ModuleList] | None = None
    for module in model.modules():
        lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part) == count]
        if lists and any(part is embedding for part in module.modules()):
            innermost = (module, lists[0])
    if innermost is None:
        what = f"{type(model).__name__} has no list of {count} layers beside its embedding"
        raise ModelError(
            "unloadable-target",
            what,
            where=str(model.config.name_or_path),
            fix="use another target, or another backend",
        )
    return innermost
