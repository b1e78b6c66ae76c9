"""Token data for training: text turned into token streams, and the small corpora that are shipped."""
