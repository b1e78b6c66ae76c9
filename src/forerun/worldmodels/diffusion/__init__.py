"""Diffusion model predictive control: action proposals, multi-step dynamics and values, learned apart."""
