"""llama.cpp, through llama-cpp-python, as a benchmark worker (see forerun.recipes.decode_benchmark.channel)."""

import argparse
import time
from pathlib import Path

from forerun.recipes.decode_benchmark.channel import Channel, Reply, Request, parse_cores

_LOOKUP_TOKENS = 2
"""What llama-cpp-python's documentation advises for a machine without a GPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cores", required=True, type=parse_cores)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--mode", required=True, choices=("plain", "lookup"))
    args = parser.parse_args()
    channel = Channel(cores=args.cores)

    import llama_cpp
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    uses_repacked_weights = not _has_amx()
    defaults = llama_cpp.llama_model_default_params

    def model_params() -> llama_cpp.llama_model_params:
        params = defaults()
        params.use_extra_bufts = uses_repacked_weights
        return params

    # Llama() has no argument for this field: its AMX weight layout faults on some virtual processors.
    llama_cpp.llama_model_default_params = model_params
    llama = llama_cpp.Llama(
        args.model,
        n_ctx=2048,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=_LOOKUP_TOKENS) if args.mode == "lookup" else None,
        verbose=False,
    )

    def decode(request: Request) -> Reply:
        started_at = time.perf_counter()
        first_at = started_at
        token_ids: list[int] = []
        llama.set_seed(request.seed)
        stream = llama.generate(
            list(request.prompt_token_ids), temp=request.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0
        )
        for token_id in stream:
            token_ids.append(int(token_id))
            if len(token_ids) == 1:
                first_at = time.perf_counter()
            if token_id in request.eos_ids or len(token_ids) == request.max_tokens:
                break
        last_at = time.perf_counter()
        stream.close()
        llama.reset()
        return Reply(token_ids=tuple(token_ids), first_token_s=first_at - started_at, decode_s=last_at - first_at)

    channel.hello(
        versions={"llama-cpp-python": llama_cpp.__version__},
        use_extra_bufts=uses_repacked_weights,
        lookup_tokens=_LOOKUP_TOKENS if args.mode == "lookup" else None,
        system=llama_cpp.llama_print_system_info().decode(),
    )
    channel.serve(decode)


def _has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_int8" in cpuinfo.read_text()


if __name__ == "__main__":
    main()
