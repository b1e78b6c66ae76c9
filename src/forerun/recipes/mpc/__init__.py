"""Diffusion model predictive control from data to a table: collect, train, plan, adapt, reproduce."""
