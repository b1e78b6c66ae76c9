"""World models from end to end: tasks out of held-out episodes, planning, surprise, the whole study, its pictures."""
