"""Training in stages: `fastvlm train RECIPE.yaml`. Needs the extra `train`."""
