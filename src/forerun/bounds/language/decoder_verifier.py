"""Check the certificate of a decoder or an ensemble of them, with Python and numpy: ``... CERTIFICATE.zip DATA.npz``.

This file imports nothing of Forerun. It decodes the message to weights, scores the training tokens, adds up what the
message costs, recomputes the bound, and compares. DATA.npz holds ``ids`` [num_tokens], the training tokens, and
``num_bytes``, of their text. An adapter needs ``--base BASE.npz`` with the tensors of its frozen base. Exit status: 0
yes, 1 no, 2 unusable arguments. With ``--measure`` it prints what it measures, claims ignored.

The model (format 1). Members are decoders of the grid's shapes [hidden, intermediate, layers, heads]: token embedding,
layers of RMSNorm, causal attention with rotary embedding, RMSNorm and gated MLP, a last RMSNorm, a head of its own. The
tokens come in windows that share one token with the next; each token but the first of all is predicted from those
before it in its window. Laws of members are averaged by probability or by logit; a token of probability p among V
scores -log2((1 - a) p + a / V).

The prior. Choices are uniform over the grid's lists; the vocabulary's size takes 16 bits, and its merges, learned from
the same text unless they came with a base, 2 (V - 256) log2 V. A tensor is a step size from the grid's list and whole
steps away from its start (norms: 1, others: 0, an adapter's: the base): zero or not, a fair sign, further steps, each
by a Krichevsky-Trofimov coin. An adapter of rank r adds B @ A to the four attention matrices of each layer and sends A
and B alone. All models share this prior, so that choosing the best of many is paid by the message that names it.

The bound holds with probability 1 - delta over the draw of the text, whatever its dependence, for the mean over
positions of the expected score of a token redrawn from its law given the text before it; by the supermartingale of
products of 1 + rate * (centre - score), the centre being the entropy of the predicted law. The base of an adapter must
be independent of the text; that is for its maker to say, and the certificate keeps what was said.
"""

import argparse
import hashlib
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np

STANDARD_GRID_SHA256 = {"decoder": "fc53f169d831694c60921ccd9d33de3d1a341f099a4d121a9e21895338d2edd8"}
FORMAT = "forerun-decoder-certificate"
MAX_COINS, MAX_STEPS = 8, 255
NORM_EPS, ROPE_THETA = 1e-5, 10000.0
MAX_MESSAGE_BYTES = 1 << 26
SLACK_BITS = TOLERANCE = 1e-6
WINDOWS_AT_ONCE = 32


def require(condition, reason):
    """Reject, with a ValueError that says why, unless a condition holds."""
    if not condition:
        raise ValueError(reason)


class Decoder:
    """Integer arithmetic decoding with 62-bit registers; adds up the information of what it reads."""

    def __init__(self, code):
        self.bits = "".join(f"{byte:08b}" for byte in code)
        self.cursor, self.low, self.high = 62, 0, (1 << 62) - 1
        self.value = int(self.bits[:62].ljust(62, "0"), 2)
        self.num_bits = 0.0

    def read(self, frequencies):
        """Return the next symbol under integer frequencies."""
        total, position, symbol, start = sum(frequencies), 0, 0, 0
        position = ((self.value - self.low + 1) * total - 1) // (self.high - self.low + 1)
        while start + frequencies[symbol] <= position:
            start += frequencies[symbol]
            symbol += 1
        return self.narrow(symbol, start, frequencies[symbol], total)

    def read_uniform(self, count):
        """Return a number below ``count``, all equally likely."""
        position = ((self.value - self.low + 1) * count - 1) // (self.high - self.low + 1)
        return self.narrow(position, position, 1, count)

    def narrow(self, symbol, start, frequency, total):
        """Go past a symbol and return it."""
        self.num_bits += math.log2(total / frequency)
        width = self.high - self.low + 1
        self.high = self.low + width * (start + frequency) // total - 1
        self.low += width * start // total
        half, quarter = 1 << 61, 1 << 60
        while self.high < half or self.low >= half or (self.low >= quarter and self.high < half + quarter):
            offset = 0 if self.high < half else half if self.low >= half else quarter
            bit = self.bits[self.cursor] == "1" if self.cursor < len(self.bits) else 0
            self.cursor += 1
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1
            self.value = 2 * (self.value - offset) + bit
        return symbol

    def read_coin(self, counts):
        """Return a bit by the Krichevsky-Trofimov estimator, whose counts are updated."""
        bit = self.read([2 * counts[0] + 1, 2 * counts[1] + 1])
        counts[bit] += 1
        return bit

    def read_steps(self, count):
        """Return ``count`` whole numbers of steps."""
        zero_coins, more_coins = [[0, 0], [0, 0]], [[0, 0] for _ in range(MAX_COINS)]
        values, before = [], 0
        for _ in range(count):
            before, value = self.read_coin(zero_coins[before]), 0
            if before:
                sign, value = 2 * self.read([1, 1]) - 1, 1
                while value < MAX_STEPS and self.read_coin(more_coins[min(value, MAX_COINS) - 1]):
                    value += 1
                value *= sign
            values.append(value)
        return np.array(values, dtype=np.float64)


def tensor_shapes(shape, vocab_size):
    """Return {name: shape} of a decoder's tensors, in the order of the message."""
    hidden, intermediate, layers, _ = shape
    shapes = {"embed_tokens": (vocab_size, hidden)}
    for layer in range(layers):
        at = f"layers.{layer}."
        shapes |= {at + f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {at + f"mlp.{name}_proj": (intermediate, hidden) for name in ("gate", "up")}
        shapes |= {at + "mlp.down_proj": (hidden, intermediate)}
        shapes |= {at + f"{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    return {**shapes, "norm": (hidden,), "lm_head": (vocab_size, hidden)}


def decode(message, grid, base=None):
    """Return (model, ledger in bits) of a message under a grid, upon the tensors of a base if it is an adapter."""
    decoder, ledger, members = Decoder(message), {"choices": 0.0, "vocabulary": 0.0, "tokenizer": 0.0}, []
    names = ("smoothings", "windows", "averages", "member_counts", "ranks")
    model = {name: grid[name][decoder.read_uniform(len(grid[name]))] for name in names}
    ledger["choices"] = decoder.num_bits
    model["vocab_size"] = vocab_size = 1 + decoder.read_uniform(1 << 16)
    ledger["vocabulary"] = decoder.num_bits - ledger["choices"]
    ledger["tokenizer"] = 0.0 if base is not None else 2 * max(vocab_size - 256, 0) * math.log2(vocab_size)
    require((model["ranks"] > 0) == (base is not None), "an adapter needs its base, and nothing else has one")
    for _ in range(model["member_counts"]):
        before = decoder.num_bits
        shape = grid["shapes"][decoder.read_uniform(len(grid["shapes"]))]
        ledger["choices"] += decoder.num_bits - before
        shapes, tensors = tensor_shapes(shape, vocab_size), {}
        require(base is None or {name: base[name].shape for name in base} == shapes, "the base has another shape")
        for name, size in shapes.items():
            parts, kind = [size], name.rpartition(".")[2] if "layers" in name else name
            if base is not None:
                is_adapted = "self_attn" in name
                parts = [(size[0], model["ranks"]), (model["ranks"], size[1])] if is_adapted else []
            before, found = decoder.num_bits, []
            for part in parts:
                step = 2.0 ** (-grid["step_exponents"][decoder.read_uniform(len(grid["step_exponents"]))] / 2)
                found.append(step * decoder.read_steps(math.prod(part)).reshape(part))
            ledger[kind] = ledger.get(kind, 0.0) + decoder.num_bits - before
            start = np.ones(size) if len(size) == 1 else 0.0
            change = found[0] if len(found) == 1 else found[0] @ found[1] if found else 0.0
            tensors[name] = (start if base is None else base[name].astype(np.float64)) + change
        members.append((shape, tensors))
    require(8 * len(message) <= decoder.num_bits + 16, "the message has bytes after its end")
    return {**model, "members": members}, ledger


def normalise(x, scale):
    """Return RMSNorm over the last axis."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + NORM_EPS) * scale


def next_logits(shape, tensors, ids):
    """Return logits [B, T, V] of the token after each of ids [B, T]."""
    hidden, _, layers, heads = shape
    size = hidden // heads
    angles = np.arange(ids.shape[1])[:, None] * ROPE_THETA ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles), np.sin(angles)
    future = np.triu(np.full((ids.shape[1], ids.shape[1]), -np.inf), 1)

    def split_heads(rows):
        return rows.reshape(*ids.shape, heads, size).transpose(0, 2, 1, 3)

    def rotate(rows):
        first, second = rows[..., : size // 2], rows[..., size // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x = tensors["embed_tokens"][ids]
    for layer in range(layers):
        weights = {name.partition(f"layers.{layer}.")[2]: tensors[name] for name in tensors if f"s.{layer}." in name}
        y = normalise(x, weights["input_layernorm"])
        q, k, v = (split_heads(y @ weights[f"self_attn.{name}_proj"].T) for name in "qkv")
        scores = rotate(q) @ rotate(k).swapaxes(-1, -2) / math.sqrt(size) + future
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        x = x + y.transpose(0, 2, 1, 3).reshape(*ids.shape, hidden) @ weights["self_attn.o_proj"].T
        y = normalise(x, weights["post_attention_layernorm"])
        gate = y @ weights["mlp.gate_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ weights["mlp.up_proj"].T)) @ weights["mlp.down_proj"].T
    return normalise(x, tensors["norm"]) @ tensors["lm_head"].T


def log_law(logits):
    """Return log-probabilities over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def score_tokens(model, ids):
    """Return scores in bits of every token but the first, and the entropies of their predicted laws."""
    window, smoothing, scores, centres = model["windows"], model["smoothings"], [], []
    starts = np.arange(0, len(ids) - 1, window)
    groups = np.split(starts, np.arange(WINDOWS_AT_ONCE, len(starts), WINDOWS_AT_ONCE))
    for group in groups:
        rows = ids[np.minimum(group[:, None] + np.arange(window + 1), len(ids) - 1)]
        is_token = group[:, None] + np.arange(1, window + 1) < len(ids)
        logits = [next_logits(shape, tensors, rows[:, :-1]) for shape, tensors in model["members"]]
        if model["averages"] == "logit":
            law = np.exp(log_law(sum(logits) / len(logits)))
        else:
            law = sum(np.exp(log_law(item)) for item in logits) / len(logits)
        law = (1 - smoothing) * law + smoothing / model["vocab_size"]
        bits = -np.log2(law)
        scores.append(np.take_along_axis(bits, rows[:, 1:, None], axis=2)[..., 0][is_token])
        centres.append((law * bits).sum(axis=2)[is_token])
    return np.concatenate(scores), np.concatenate(centres)


def token_bound(scores, centres, rates, largest, nats):
    """Return the least bound over the rates that scores in [0, largest] allow; the choice among them is paid here."""
    bounds, nats = [largest], nats + math.log(len(rates))
    for rate in rates:
        if rate * largest < 1:
            gain = np.log1p(rate * (centres - scores)).sum()
            bounds.append((rate * centres.sum() - gain + nats) / (rate * len(scores)))
    return float(min(bounds)) + SLACK_BITS


def data_sha256(ids, num_bytes):
    """Return the digest that names a text as tokens."""
    return hashlib.sha256(np.asarray([num_bytes, *ids], "<i8").tobytes()).hexdigest()


def base_sha256(base):
    """Return the digest that names the tensors of a base."""
    digest = hashlib.sha256()
    for name in sorted(base):
        digest.update(f"{name} {base[name].shape}".encode() + np.ascontiguousarray(base[name], "<f4").tobytes())
    return digest.hexdigest()


def grid_sha256(grid):
    """Return the digest of a grid in canonical JSON."""
    return hashlib.sha256(json.dumps(grid, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_certificate(path):
    """Return (manifest, message); rejects whatever is not exactly these two."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            require(names == ["manifest.json", "message.bin"], f"the archive holds {names}, nothing else may be in it")
            require(max(info.file_size for info in archive.infolist()) <= MAX_MESSAGE_BYTES, "the archive is too large")
            return json.loads(archive.read("manifest.json")), archive.read("message.bin")
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError, OSError, EOFError) as error:
        raise ValueError(f"the file is no certificate or is corrupt ({error})") from error


def measure(manifest, message, ids, num_bytes, base=None):
    """Return what the message is worth: ledger, bits, score, bound; ValueError if it or the text is unusable."""
    grid, delta = manifest["grid"], manifest["delta"]
    require(isinstance(delta, float) and 0 < delta < 1, f"delta={delta} is not strictly between 0 and 1")
    require(ids.ndim == 1 and len(ids) > 1 and ids.dtype.kind in "iu" and num_bytes > 0, "the tokens are no tokens")
    if base is not None:
        require(manifest["base_sha256"] == base_sha256(base), "this is not the base of the certificate")
        require(manifest["base_is_independent"] is True, "nobody says that the base is independent of the text")
    model, ledger = decode(message, grid, base)
    bits, vocab_size = sum(ledger.values()), model["vocab_size"]
    require(len(message) > 0 and bits > 0, "the message costs nothing: a model of zero bits certifies nothing")
    require(ids.min() >= 0 and ids.max() < vocab_size, f"the tokens are not all below {vocab_size}")
    scores, centres = score_tokens(model, ids.astype(np.int64))
    nats = bits * math.log(2) - math.log(delta)
    bound = token_bound(scores, centres, grid["rates"], math.log2(vocab_size / model["smoothings"]), nats)
    return {
        "num_tokens": len(scores), "num_bytes": int(num_bytes), "code_length_bits": bits, "ledger_bits": ledger,
        "token_score": float(scores.mean()), "token_bound": bound, "is_vacuous": bound >= math.log2(vocab_size),
        "bits_per_byte": float(scores.sum() / num_bytes), "bits_per_byte_bound": bound * len(scores) / int(num_bytes),
    }  # fmt: skip


def verify(path, ids, num_bytes, base=None, expected_grid_sha256=None):
    """Return the recomputed numbers of a certificate that holds; ValueError if it does not."""
    manifest, message = read_certificate(path)
    try:
        require(manifest["format"] == FORMAT and manifest["version"] == 1, "unknown format or version")
        grid_digest = grid_sha256(manifest["grid"])
        allowed = expected_grid_sha256 or STANDARD_GRID_SHA256.get(manifest["task"])
        require(allowed is not None, f"name the grid fixed beforehand: --grid-sha256 (this one is {grid_digest})")
        require(grid_digest == allowed, "the grid is not the one that was fixed before the data")
        require(manifest["data_sha256"] == data_sha256(ids, num_bytes), "these are not the data of the certificate")
        require(manifest["message_sha256"] == hashlib.sha256(message).hexdigest(), "the message has been changed")
        found = measure(manifest, message, ids, num_bytes, base)
        pair = manifest["claims"], found
        claimed, actual = ({**numbers, **numbers["ledger_bits"], "ledger_bits": 0} for numbers in pair)
        require(claimed.keys() == actual.keys(), "the claims are about other things, or the ledger has other lines")
        for name, value in actual.items():
            require(abs(value - claimed[name]) <= TOLERANCE, f"{name} is {value}, claimed is {claimed[name]}")
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"the manifest is malformed ({type(error).__name__}: {error})") from error
    return found


def main():
    """Verify or measure, and write the answer as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the certificate of a decoder or an ensemble.")
    parser.add_argument("certificate", type=Path, metavar="CERTIFICATE.zip")
    parser.add_argument("data", type=Path, metavar="DATA.npz", help="ids and num_bytes")
    parser.add_argument("--base", type=Path, metavar="BASE.npz", help="tensors of an adapter's base")
    parser.add_argument("--grid-sha256", metavar="HEX", help="digest of the grid fixed beforehand")
    parser.add_argument("--measure", action="store_true", help="ignore the claims")
    options = parser.parse_args()
    try:
        with np.load(options.data, allow_pickle=False) as data:
            ids, num_bytes = data["ids"], int(data["num_bytes"])
        base = None if options.base is None else dict(np.load(options.base, allow_pickle=False))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{options.data}: not an .npz file with ids and num_bytes ({error})")
    try:
        if options.measure:
            found = measure(*read_certificate(options.certificate), ids, num_bytes, base)
        else:
            found = verify(options.certificate, ids, num_bytes, base, options.grid_sha256)
        answer = {"accepted": True, "reason": None, **found}
    except ValueError as error:
        answer = {"accepted": False, "reason": str(error)}
    sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    return 0 if answer["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
