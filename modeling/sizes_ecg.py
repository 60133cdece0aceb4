"""What is checked of a model's configuration before anything is built by it."""

import math

from transformers.configuration_utils import PreTrainedConfig

MAX_LAYERS = 512  # of a stack
MAX_SIZE = 1 << 20  # any other number of things: channels, tokens, positions


def check_sizes(config: PreTrainedConfig, where: str = "config.json: "):
    """
    Raises:
        ValueError: a size that no ECG model has, or a number that is not finite; the message names the field.
    """
    for name, field in vars(config).items():
        if name in config.sub_configs:
            check_sizes(field, f"{where}{name}.")
            continue
        most = MAX_LAYERS if "layers" in name or name == "depths" else MAX_SIZE
        for value in field if isinstance(field, list | tuple) else (field,):
            if isinstance(value, int) and abs(value) > most:
                raise ValueError(f"{where}{name} is {value:.3g}; at most {most} is allowed")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where}{name} is {value}, which is no finite number")
