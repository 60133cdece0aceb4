"""What is checked of a model's weights before they are used: no key, shape or number is taken on trust."""

import math
from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError

HEAD = "classifier."  # how the names of weights begin that may be new
MAX_WEIGHT = 1e6  # no trained parameter is as large; the products of larger ones overflow


class CheckedLoadingMixin:
    """For a `PreTrainedModel`: `from_pretrained` reads safetensors alone, and refuses weights that are missing, of the
    wrong shape, too many, not finite or huge, before memory is taken for what is not there.

    The head of a classifier (`classifier.*`) may be missing; transformers says so.  A class that is not the one that
    the folder was saved from may leave weights of the folder out.
    """

    config: Any
    # Patterns of names that weights have in other folders, and what they are called here.
    _other_names: dict[str, str] = {}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any
    ):
        """As in transformers.

        Raises:
            ValueError: the folder's weights are no safetensors, damaged, or do not fit its `config.json`.
        """
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError(f"{pretrained_model_name_or_path}: weights are read from safetensors alone")
        names = cls._other_names | (key_mapping or {})
        load = super().from_pretrained  # type: ignore[misc]
        try:
            loaded = load(pretrained_model_name_or_path, *args, key_mapping=names, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: its safetensors are damaged: {error}") from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers would undo every renaming when it saves the model
        conversions = getattr(model, "_weight_conversions", None) or []
        own = {*cls._other_names.values()}
        model._weight_conversions = [each for each in conversions if not {*each.target_patterns} <= own]
        return loaded

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        """A step of transformers' loading: what was read is in place, what was not has no memory yet."""
        folder = load_config.pretrained_model_name_or_path
        if not load_config.ignore_mismatched_sizes:
            shapes = [f"{name} {tuple(has)} (not {tuple(needs)})" for name, has, needs in loading_info.mismatched_keys]
            _refuse(folder, "weights of a shape that config.json does not give", shapes)
        made_up = loading_info.missing_keys - model.all_tied_weights_keys.keys()
        _refuse(folder, "no weights for", [name for name in made_up if not name.startswith(HEAD)])
        _refuse(folder, "NaN, infinity or huge numbers in", _unusable(model))
        finalize = super(CheckedLoadingMixin, type(model))._finalize_model_loading  # type: ignore[misc]
        info = finalize(model, load_config, loading_info)
        if type(model).__name__ in (model.config.architectures or ()):
            _refuse(folder, "weights that the model does not have", info.unexpected_keys)
        return info


def _unusable(model: Any) -> list[str]:
    found = []
    for tensors, most in ((model.named_parameters(), MAX_WEIGHT), (model.named_buffers(), math.inf)):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
                low, high = torch.aminmax(tensor.detach())  # NaN where one number is
                if not (low >= -most and high <= most and torch.isfinite(high - low)):
                    found.append(name)
    return found


def _refuse(folder: Any, what: str, names: Collection[str]):
    if names:
        first = sorted(names)[:3]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        raise ValueError(f"{folder}: its safetensors hold {what} {', '.join(first)}{more}")
