"""Pre-training when data is the limit: a prepared corpus, regularised runs, ensembles of them."""
