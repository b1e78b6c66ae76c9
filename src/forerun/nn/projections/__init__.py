"""Random linear maps from a few coefficients to the many values of a network, each as one noun."""
