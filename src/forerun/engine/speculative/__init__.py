"""Ways to draft, and the rules that verify a draft without changing the law."""
