"""Hugging Face transformers as a benchmark worker (see forerun.recipes.decode_benchmark.channel)."""

import argparse
import time

from forerun.recipes.decode_benchmark.channel import Channel, Reply, Request, parse_cores

_LOOKUP_TOKENS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cores", required=True, type=parse_cores)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--mode", required=True, choices=("plain", "lookup"))
    args = parser.parse_args()
    channel = Channel(cores=args.cores)

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    lookup = {"prompt_lookup_num_tokens": _LOOKUP_TOKENS} if args.mode == "lookup" else {}

    def decode(request: Request) -> Reply:
        torch.manual_seed(request.seed)
        clock = _Clock()
        prompt = torch.tensor([request.prompt_token_ids])
        sampling = (
            {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
            if request.temperature
            else {"do_sample": False}
        )
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            eos_token_id=list(request.eos_ids),
            pad_token_id=request.eos_ids[0],
            streamer=clock,
            **sampling,
            **lookup,
        )
        ended_at = time.perf_counter()
        token_ids = tuple(output[0, prompt.shape[1] :].tolist())
        return Reply(token_ids=token_ids, first_token_s=clock.first_token_s, decode_s=ended_at - clock.first_at)

    channel.hello(
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        dtype="float32",
        lookup_tokens=_LOOKUP_TOKENS if lookup else None,
    )
    channel.serve(decode)


class _Clock:
    """A streamer that notes when the first tokens came; the first call to ``put`` is the prompt."""

    def __init__(self) -> None:
        self.started_at = self.first_at = time.perf_counter()
        self._num_calls = 0

    def put(self, value: object) -> None:
        self._num_calls += 1
        if self._num_calls == 2:
            self.first_at = time.perf_counter()

    def end(self) -> None:
        return

    @property
    def first_token_s(self) -> float:
        return self.first_at - self.started_at


if __name__ == "__main__":
    main()
