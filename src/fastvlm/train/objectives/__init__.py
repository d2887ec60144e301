"""What a stage learns: one file an objective, named by `objective:` in the recipe.

Each file defines `Objective(model, processor, options)`, an nn.Module that owns what is only needed in training (its own heads):
  prepare(sample) -> item: one sample made ready, in the data worker; raises BrokenSample, which is counted and named
  collate(items) -> batch: dict of tensors, made in the data worker; None when no item is left
  count(batch) -> how many targets it has; what losses are divided by, over all processes and accumulated parts
  loss(model, batch) -> (loss summed over the targets, {metric: (sum, count)})
"""

from torch import Tensor

Batch = dict[str, Tensor]
Metrics = dict[str, tuple[Tensor, Tensor]]
