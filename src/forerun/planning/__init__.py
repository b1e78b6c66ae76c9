"""Planning with a world model: candidates, objectives, planners, receding-horizon control."""
