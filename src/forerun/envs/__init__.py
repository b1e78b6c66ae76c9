"""Control tasks of our own: their worlds, and policies that act in them."""
