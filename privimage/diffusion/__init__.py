"""Diffusion models as in EDM: network, preconditioning and loss, samplers, EMA, pre-training."""
