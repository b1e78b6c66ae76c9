"""World models: what an action does, learned from trajectories."""
