"""Our engine as a benchmark worker: ``python -m forerun.recipes.decode_benchmark.worker --method ssd --cores 0,1``."""

import argparse

from forerun.recipes.decode_benchmark.channel import Channel, Reply, Request, parse_cores


def main() -> None:
    """Load the engine that the arguments name, then serve requests."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--method", required=True, choices=("none", "sequential", "ssd", "auto"))
    parser.add_argument("--cores", required=True, type=parse_cores)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="default")
    parser.add_argument("--draft", default="default")
    args = parser.parse_args()
    channel = Channel(cores=args.cores)

    from forerun.engine.api import LLM
    from forerun.engine.sampling import SamplingParams

    # Plain decoding loads no draft, so that its memory is its own.
    draft = None if args.method == "none" else args.draft
    with LLM(args.target, draft=draft, method=args.method, num_threads=args.threads, cores=args.cores) as llm:

        def decode(request: Request) -> Reply:
            params = SamplingParams(
                temperature=request.temperature, max_tokens=request.max_tokens, seed=request.seed
            )  # EOS is the model's own
            completion = llm.generate([list(request.prompt_token_ids)], params)[0]
            metrics = completion.metrics
            return Reply(
                token_ids=completion.token_ids,
                first_token_s=metrics.prefill_s,
                decode_s=metrics.decode_s,
                metrics=metrics.as_dict(),
            )

        channel.hello()
        channel.serve(decode)


if __name__ == "__main__":
    main()
