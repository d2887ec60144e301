"""What a stage learns: one file an objective, named by `objective:` in the recipe.

Each file defines `Objective(model, stage, processor)`, an nn.Module that owns what is only needed in training (its own heads):
  dataset(start) -> iterable of samples, one per index from `start` on, the same for the same index
  collate(samples) -> dict of tensors, in the data worker
  loss(batch) -> (loss summed over targets, number of targets, metrics)   metrics: dict of name -> (sum, count)
"""
