"""The decoding benchmark: engines in processes of their own, measured in turn on the same prompts.

The protocol is stated in benchmarks/README.md. ``plan`` says which engines run and on how many prompts, ``channel`` and
``engine_process`` are the two ends of the pipe to an engine, ``worker`` is our engine behind it, ``measure`` runs
everything and appends records, ``summary`` and ``bars`` turn records into results, ``plot`` draws them.

Nothing is imported here: a peer's interpreter loads ``channel`` alone and needs no other package for it.
"""
