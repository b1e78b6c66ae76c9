"""What "Deep Learning is Not So Mysterious or Different" (arXiv 2503.02113) says, measured on small models."""
