"""Before any test module here imports timm: torchvision's declarations; one thread, as two tests may run at once."""

import torch

import hiervl_train.models.torchvision_ops  # noqa: F401

torch.set_num_threads(1)
