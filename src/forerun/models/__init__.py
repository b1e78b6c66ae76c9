"""Language models: one decoder, its configuration, and the file formats it loads from."""
