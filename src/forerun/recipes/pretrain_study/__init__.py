"""The data-limited study: regularise, ensemble, extrapolate, distil, at a size for the machine, and its report."""
