"""EchoingECG's network trained with InfoNCE on its means: what its probabilistic loss is to be compared with.

    python benchmarks/infonce_student.py --config training/configs/tiny_ptb_xl.yaml loop.output=runs/tiny/infonce
    python -m ecgformers.evaluation.retrieval --model runs/tiny/infonce/best --data data/ptb-xl-reports \\
        --folds 1-7/8/9 --output results/infonce

Everything else is the recipe `pretrain_echoing_ecg`.  Variances are fixed close to 0, so that the distance between two
Gaussians ranks like the cosine between their means.
"""

import math
from typing import Any

import torch
from torch import nn

from ecgformers.modeling.configuration_echoing_ecg import EchoingEcgConfig
from ecgformers.modeling.losses_ecg import contrastive_loss
from ecgformers.modeling.modeling_echoing_ecg import EchoingEcgModel, EchoingEcgOutput
from ecgformers.training.pretrain_echoing_ecg import main


class InfoNceStudent(EchoingEcgModel):
    """`EchoingEcgModel` under another loss; its folders load as the model itself."""

    _auto_class = None
    _keys_to_ignore_on_save = ("contrastive_scale",)

    def __init__(self, config: EchoingEcgConfig):
        super().__init__(config)
        self.contrastive_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for head in (self.ecg_model.head, self.text_model.head):
            nn.init.zeros_(head.logvar_projection.weight)
            nn.init.constant_(head.logvar_projection.bias, -30.0)
            head.logvar_projection.requires_grad_(False)

    def forward(self, *args: Any, return_loss: bool = False, gather: bool = False, **kwargs: Any) -> EchoingEcgOutput:
        """As `EchoingEcgModel.forward`; with `return_loss` the symmetric InfoNCE of the means."""
        output = super().forward(*args, **kwargs)
        if return_loss:
            scale = self.contrastive_scale.exp().clamp(max=100)
            output.loss = contrastive_loss(output.ecg_embeds, output.text_embeds, scale, gather)
        return output


if __name__ == "__main__":
    main(model_class=InfoNceStudent)
