"""A benchmark engine that emits token 7 until it may stop; its arguments choose how it misbehaves."""

import sys
import time

from forerun.recipes.decode_benchmark.channel import Channel, Reply, Request, parse_cores

cores, behaviour = parse_cores(sys.argv[1]), sys.argv[2]
channel = Channel(cores=cores)
num_requests = 0


def decode(request: Request) -> Reply:
    global num_requests
    num_requests += 1
    if behaviour == "dies later" and num_requests > 3:
        sys.exit("out of luck")
    if behaviour == "hangs":
        time.sleep(60)
    print("noise that a library prints")  # noqa: T201
    token_ids = (7,) * (request.max_tokens - 1) + request.eos_ids[:1]
    return Reply(token_ids=token_ids, first_token_s=0.01, decode_s=0.1)


if behaviour == "dies at once":
    sys.exit("no such model")
channel.hello(versions={"fake": "1"})
channel.serve(decode)
