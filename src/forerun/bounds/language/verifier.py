"""Check a language certificate with nothing but Python and numpy: ``python verifier.py CERTIFICATE.zip DATA.npz``.

This file imports nothing of Forerun. It decodes the message to a model, scores every byte of the training text, adds up
what the message costs under the prior, recomputes the bounds, and compares all of it with the claims. DATA.npz holds
``text`` [num_bytes] uint8, the documents one after the other, and ``ends``, where each ends. Exit status: 0 yes, 1 no,
2 unusable arguments.

The model (format 1). The law of a byte depends on the bytes before it in its document alone; it is a product over its
bits, high bit first. For each of 13 contexts (context_hashes) the bits seen earlier in the document at the same place
(same context, same higher bits of the byte) give a state: unseen; all alike, by how many; or mixed, by the ratio of the
last bit's count to the other's and by the length of the last run. State s of context k votes T[k][s], in 1/64 nat, for
the last bit seen there; its weight in 1/256 is a sum of five: the context's own, and one by each of four selectors
(longest order seen, dissenting contexts, class of the last byte, place of the bit). Votes and a bias by partial byte
add up to the logit, in integers. A byte of probability p scores -log2((1 - a) p + a / 256).

The prior. Steps and the smoothing a are uniform over the grid's lists. Weights, votes and biases are whole steps away
from fixed values: zero or not (a Krichevsky-Trofimov coin, one for each answer before it), a fair sign, and one such
coin for each further step (the first MAX_COINS have their own).

The bounds hold at once with probability 1 - delta over the draw of the text, with half of delta each. Token: for texts
of any dependence, the mean over positions of the expected score of a byte redrawn from its law given all text before
it; by the supermartingale of products of 1 + rate * (centre - score), the centre being the mean score of earlier bytes
in similar places. Document: for documents drawn independently, or, their number fixed beforehand, without replacement
from a collection, the expected score per byte of a document so drawn, for the even mixture of model and uniform bytes.
"""

import argparse
import hashlib
import json
import math
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np

STANDARD_GRID_SHA256 = {"bytes": "dcf34fd47f48fe146d37c6e84310ce3dd13d04d74d615b1c560d52cace5fe294"}
FORMAT = "forerun-language-certificate"
CONTEXTS = ("o0", "o1", "o2", "o3", "o4", "o6", "o9", "o16", "word", "words", "line", "above", "gap")
ORDERS = (1, 2, 3, 4, 6, 9, 16)
SELECTORS, NUM_STATES, FIRST_WEIGHT = (8, 5, 8, 8), 46, 77
RATIOS = (-2.5, -1.5, -0.8, -0.3, 0.3, 0.8, 1.5, 2.2, 3.0, 4.0, 5.0)
COUNTS = (1, 2, 3, 4, 6, 9, 16, 32, 100)
MAX_COINS, MAX_STEPS = 8, 255
MAX_LOGIT, MAX_MESSAGE_BYTES = 12 * 1024, 1 << 24
MIN_DOCUMENT_BYTES, MAX_DOCUMENT_BYTES = 64, 1 << 21
SLACK_BITS = TOLERANCE = 1e-6


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
        total, width = sum(frequencies), self.high - self.low + 1
        position = ((self.value - self.low + 1) * total - 1) // width
        symbol, start = 0, 0
        while start + frequencies[symbol] <= position:
            start += frequencies[symbol]
            symbol += 1
        self.num_bits += math.log2(total / frequencies[symbol])
        self.high = self.low + width * (start + frequencies[symbol]) // total - 1
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
        return np.array(values, dtype=np.int64)


def decode(message, grid):
    """Return (model, ledger in bits) of a message under a grid."""
    decoder, found, ledger, num = Decoder(message), {}, {}, len(CONTEXTS)
    sizes = {"weights": num * (1 + sum(SELECTORS)), "votes": num * (NUM_STATES - 1), "biases": 255}
    for line in ("smoothings", "weight_steps", "vote_steps", "bias_steps", *sizes):
        before = decoder.num_bits
        options = grid.get(line)
        found[line] = options[decoder.read([1] * len(options))] if options else decoder.read_steps(sizes[line])
        ledger[line] = decoder.num_bits - before
    require(8 * len(message) <= decoder.num_bits + 16, "the message has bytes after its end")
    weights = (found["weights"] * found["weight_steps"]).reshape(-1, num)
    weights[0] += FIRST_WEIGHT
    combined, start = weights[:1], 1
    for size in SELECTORS:
        combined = (combined[:, None, :] + weights[None, start : start + size, :]).reshape(-1, num)
        start += size
    votes = np.tile(first_votes(), (num, 1))
    votes[:, 1:] += (found["votes"] * found["vote_steps"]).reshape(num, -1)
    biases = np.concatenate([[0], found["biases"] * found["bias_steps"]])
    weights = np.ascontiguousarray(combined.T)
    return {"smoothing": found["smoothings"], "weights": weights, "votes": votes, "biases": biases}, ledger


def mix(words):
    """Return 64-bit words, scrambled."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def first_votes():
    """Return the votes [NUM_STATES] that every context starts from, in 1/64 nat."""
    runs = [(low + high - 1) / 2 for low, high in zip(COUNTS, (*COUNTS[1:], 200), strict=True)]
    middles = [-3.0, *((low + high) / 2 for low, high in pairwise(RATIOS)), 5.5]
    nats = [0.0, *(math.log((run + 0.4) / 0.4) for run in runs), *(middles * 3)]
    return np.round(64 * np.array(nats)).astype(np.int64)


def byte_classes():
    """Return the class of each byte: space, newline, lower case, upper case, digit, underscore, opening, other."""
    classes = np.full(256, 7)
    for name, members in enumerate((b" ", b"\n", range(97, 123), range(65, 91), range(48, 58), b"_", b"([{.,=:")):
        classes[list(members)] = name
    return classes


def context_hashes(text):
    """Return the hashes [len(CONTEXTS), num_bytes] of the contexts before each byte of a document."""
    num, at, classes, factor = len(text), np.arange(len(text)), byte_classes()[text], 0x9E3779B97F4A7C15
    is_word = ((classes >= 2) & (classes <= 5)) | (text >= 128)
    powers = np.cumprod(np.full(num + 1, factor, np.uint64)) * np.uint64(pow(factor, -1, 2**64))
    inverses = np.cumprod(np.full(num + 1, pow(factor, -1, 2**64), np.uint64)) * np.uint64(factor)
    prefix = np.concatenate([[np.uint64(0)], np.cumsum((text.astype(np.uint64) + np.uint64(1)) * powers[:-1])])

    def span(start, end):
        return mix((prefix[end] - prefix[start]) * inverses[start])

    def last_where(mask):  # Before each byte, and after the last; -1 where there is none.
        return np.concatenate([[-1], np.maximum.accumulate(np.where(mask, at, -1))])

    third, second, last = (np.concatenate([np.zeros(back, np.uint8), text])[:num] for back in (3, 2, 1))
    word_start = last_where(~is_word)[:-1] + 1
    word = np.where(word_start == at, last.astype(np.uint64), span(word_start, at))
    last_word = last_where(is_word)
    end = last_word[word_start]
    start = np.where(end >= 0, word_start[end], 0)
    before = np.where(end >= 0, span(start, end + 1), np.uint64(0))
    line_start = last_where(text == 10)[:-1] + 1
    inked = np.minimum.accumulate(np.where(text != 32, at, num)[::-1])[::-1]
    ink = np.minimum(inked[line_start], at)
    opening = [np.where(ink + step < at, text[np.minimum(ink + step, num - 1)], 0) for step in (0, 1)]
    over = np.where(line_start > 0, line_start[line_start - 1], 0) + at - line_start
    above = np.where(over < line_start, text[np.minimum(over, num - 1)], 0)
    parts = {
        "o0": (), "word": (word,), "words": (word, before), "line": (ink - line_start, *opening, word),
        "above": (above, last), "gap": (second, third),
        **{f"o{order}": (span(np.maximum(at - order, 0), at),) for order in ORDERS},
    }  # fmt: skip
    hashes = np.repeat(np.arange(len(CONTEXTS), dtype=np.uint64)[:, None], num, axis=1)
    for total, name in zip(hashes, CONTEXTS, strict=True):
        for part in parts[name]:
            total[:] = mix(total * np.uint64(factor) + part.astype(np.uint64) + np.uint64(1))
    return hashes


def state_table():
    """Return the state [run class, count of the last bit seen, count of the other]."""
    same, other = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    ratio = np.searchsorted(RATIOS, np.log((same + 0.4) / (other + 0.4)))
    alike = np.searchsorted(COUNTS, same, side="right")
    return np.stack([np.where(other == 0, alike, 10 + 12 * run + ratio) for run in range(3)]).astype(np.int8).ravel()


def context_states(hashes, nodes, bits, table):
    """Return the states [num_bits] of one context, positive where the last bit seen was 1."""
    size, low_mask = len(bits), np.uint64(8 * MAX_DOCUMENT_BYTES - 1)
    order = ((np.repeat(hashes, 8) ^ nodes) & ~low_mask) | np.arange(size, dtype=np.uint64)
    order.sort()
    is_first = np.concatenate([[True], (order[1:] ^ order[:-1]) > low_mask])
    places = (order & low_mask).astype(np.int32)
    seen_bits, index = bits[places], np.arange(size, dtype=np.int32)
    first = np.maximum.accumulate(index * is_first)
    ones = np.cumsum(seen_bits, dtype=np.int32) - seen_bits
    ones -= ones[first]
    total, last = index - first, np.roll(seen_bits, 1)
    same = np.where(last, ones, total - ones)
    other = total - same
    many = np.flatnonzero(total > 255)
    for counts in (same, other):
        counts[many] = np.maximum(counts[many] >> (np.frexp(total[many])[1] - 8), counts[many] > 0)
    alike = np.concatenate([[False, False], seen_bits[1:-1] == seen_bits[:-2]])
    run = alike.view(np.int8) + (alike & np.roll(alike, 1) & np.roll(alike, 2)).view(np.int8)
    state = table[(run.astype(np.int32) << 16) | (same << 8) | other]
    found = np.empty(size, np.int8)
    found[places] = np.where(last, state, -state)
    return found


def document_features(text, table):
    """Return a document's states [contexts, num_bits], selector and node [num_bits], bits, and buckets [num_bytes]."""
    num = len(text)
    whole = text.astype(np.int64) + 256
    nodes = (whole[:, None] >> np.arange(8, 0, -1)).ravel()
    bits = ((whole[:, None] >> np.arange(7, -1, -1)) & 1).astype(np.int8).ravel()
    salts = mix(np.arange(256, dtype=np.uint64) + np.uint64(1))[nodes]
    states = np.stack([context_states(hashes, salts, bits, table) for hashes in context_hashes(text)])
    longest = np.max([(states[rank] != 0) * np.int8(rank) for rank in range(1, len(ORDERS) + 1)], axis=0).astype(int)
    dissent = np.minimum(4, [(states > 0).sum(axis=0, dtype=np.int8), (states < 0).sum(axis=0, dtype=np.int8)]).min(
        axis=0
    )
    kind = byte_classes()[np.concatenate([[0], text[:-1]])]
    selector = ((longest * 5 + dissent) * 8 + np.repeat(kind, 8)) * 8 + np.tile(np.arange(8), num)
    bucket = (longest[::8] * NUM_STATES + np.abs(states[CONTEXTS.index("word"), ::8])) * 8 + kind
    return states, selector, nodes, bits, bucket


def score_documents(model, documents):
    """Return (scores, buckets) of every byte, and scores of documents under the even mixture with uniform bytes."""
    scores, buckets, mixed, table, smoothing = [], [], [], state_table(), model["smoothing"]
    costs = np.log2(1 + np.exp(-np.arange(-MAX_LOGIT, MAX_LOGIT + 1) / 1024))
    for text in documents:
        states, selector, nodes, bits, bucket = document_features(text, table)
        logit = model["biases"][nodes] << 8
        for votes, weights, state in zip(model["votes"], model["weights"], states, strict=True):
            signed = np.concatenate([-votes[:0:-1], [0], votes[1:]])
            logit += signed[state + (NUM_STATES - 1)] * weights[selector]
        logit = np.clip(logit >> 4, -MAX_LOGIT, MAX_LOGIT)
        cost = costs[np.where(bits == 1, logit, -logit) + MAX_LOGIT].reshape(-1, 8).sum(axis=1)
        scores.append(-np.log2((1 - smoothing) * 2.0**-cost + smoothing / 256))
        buckets.append(bucket)
        mixed.append((1 - np.logaddexp2(-scores[-1].sum(), -8.0 * len(text))) / len(text))
    return np.concatenate(scores), np.concatenate(buckets), np.array(mixed)


def earlier_means(scores, buckets):
    """Return for each byte the mean score of the earlier bytes in its bucket, with one score of 2 bits added."""
    order = np.argsort(buckets, kind="stable")
    index = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.diff(buckets[order], prepend=-1) != 0, index, 0))
    sums = np.concatenate([[0.0], np.cumsum(scores[order])])
    centres = np.empty(len(order))
    centres[order] = (sums[:-1] - sums[first] + 2.0) / (index - first + 1)
    return centres


def token_bound(scores, centres, rates, largest, nats):
    """Return the least bound over the rates that scores in [0, largest] allow; the choice among them is paid here."""
    bounds, nats = [], nats + math.log(len(rates))
    for rate in rates:
        if rate * largest < 1:
            gain = np.log1p(rate * (centres - scores)).sum()
            bounds.append((rate * centres.sum() - gain + nats) / (rate * len(scores)))
    return np.minimum(largest, min(bounds)) + SLACK_BITS


def document_bound(scores, stakes, nats):
    """Return the least bound over stakes in (0, 1), shares of what a score of the largest size could lose."""
    largest, bounds, nats = 8 + 1 / MIN_DOCUMENT_BYTES, [], nats + math.log(len(stakes))
    for stake in stakes:
        loss = -np.log1p(-stake * scores / largest).mean() + nats / len(scores)
        bounds.append(largest * -math.expm1(-loss) / stake)
    return np.minimum(largest, min(bounds)) + SLACK_BITS


def measure_model(model, documents, grid, code_length_bits, delta):
    """Return scores and bounds of a model that took this many bits to choose."""
    scores, buckets, mixed = score_documents(model, documents)
    nats = code_length_bits * math.log(2) - math.log(delta / 2)
    largest, centres = 8 - math.log2(model["smoothing"]), earlier_means(scores, buckets)
    token = token_bound(scores, centres, grid["rates"], largest, nats)
    document = document_bound(mixed, grid["stakes"], nats)
    found = {"token_score": scores.mean(), "token_bound": token, "document_score": mixed.mean()}
    found |= {"document_bound": document, "token_is_vacuous": token >= 8, "document_is_vacuous": document >= 8}
    return {name: value.item() for name, value in found.items()}


def split_documents(text, ends):
    """Return the documents; rejects what cannot be independent or is no text."""
    require(text.dtype == np.uint8 and text.ndim == 1 and ends.ndim == 1 and len(ends) > 0, "text must be bytes")
    require(ends.dtype.kind in "iu" and ends[-1] == len(text), "the documents do not end where the text ends")
    sizes = np.diff(ends.astype(np.int64), prepend=0)
    fits = sizes.min() >= MIN_DOCUMENT_BYTES and sizes.max() <= MAX_DOCUMENT_BYTES
    require(fits, f"a document has under {MIN_DOCUMENT_BYTES} bytes, or over {MAX_DOCUMENT_BYTES}")
    documents = np.split(text, ends[:-1].astype(np.int64))
    num_different = len({document.tobytes() for document in documents})
    require(num_different == len(documents), "a document is repeated: these are not independent draws")
    return documents


def data_sha256(text, ends):
    """Return the digest that names a text, its documents and their order."""
    return hashlib.sha256(np.asarray(ends, "<i8").tobytes() + text.tobytes()).hexdigest()


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


def grid_sha256(grid):
    """Return the digest of a grid in canonical JSON."""
    return hashlib.sha256(json.dumps(grid, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def measure(manifest, message, text, ends):
    """Return what the message is worth: ledger, bits, scores, bounds; ValueError if it or the text is unusable."""
    grid, delta = manifest["grid"], manifest["delta"]
    require(isinstance(delta, float) and 0 < delta < 1, f"delta={delta} is not strictly between 0 and 1")
    documents = split_documents(text, ends)
    model, ledger = decode(message, grid)
    bits = sum(ledger.values())
    require(len(message) > 0 and bits > 0, "the message costs nothing: a model of zero bits certifies nothing")
    found = {"num_bytes": len(text), "num_documents": len(ends), "code_length_bits": bits, "ledger_bits": ledger}
    return found | measure_model(model, documents, grid, bits, delta)


def verify(path, text, ends, expected_grid_sha256=None):
    """Return the recomputed numbers of a certificate that holds; ValueError if it does not."""
    manifest, message = read_certificate(path)
    try:
        require(manifest["format"] == FORMAT and manifest["version"] == 1, "unknown format or version")
        grid_digest = grid_sha256(manifest["grid"])
        allowed = expected_grid_sha256 or STANDARD_GRID_SHA256.get(manifest["task"])
        require(allowed is not None, f"name the grid fixed beforehand: --grid-sha256 (this one is {grid_digest})")
        require(grid_digest == allowed, "the grid is not the one that was fixed before the data")
        require(manifest["data_sha256"] == data_sha256(text, ends), "these are not the data of the certificate")
        require(manifest["message_sha256"] == hashlib.sha256(message).hexdigest(), "the message has been changed")
        found = measure(manifest, message, text, ends)
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
    parser = argparse.ArgumentParser(description="Check a language certificate.")
    parser.add_argument("certificate", type=Path, metavar="CERTIFICATE.zip")
    parser.add_argument("data", type=Path, metavar="DATA.npz", help="text and ends")
    parser.add_argument("--grid-sha256", metavar="HEX", help="digest of the grid fixed beforehand")
    parser.add_argument("--measure", action="store_true", help="ignore the claims")
    options = parser.parse_args()
    try:
        with np.load(options.data, allow_pickle=False) as data:
            text, ends = data["text"], data["ends"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.error(f"{options.data}: not an .npz file with text and ends ({error})")
    try:
        if options.measure:
            found = measure(*read_certificate(options.certificate), text, ends)
        else:
            found = verify(options.certificate, text, ends, options.grid_sha256)
        answer = {"accepted": True, "reason": None, **found}
    except ValueError as error:
        answer = {"accepted": False, "reason": str(error)}
    sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    return 0 if answer["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
