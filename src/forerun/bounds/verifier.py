"""Check a certificate with nothing but Python and numpy: ``python verifier.py CERTIFICATE.zip DATA.npz``.

It imports nothing of Forerun: who doubts a certificate has one short program to read. It decodes the message, counts
errors on the training data, adds up what the message costs under the prior, recomputes the bound, and compares all of
it with the claims. DATA.npz holds ``inputs`` [n, num_inputs] and ``labels`` [n], the training data. Exit status:
0 yes, 1 no, 2 unusable arguments. With ``--measure`` it prints what it measures as JSON, claims ignored.

The prior (format 2). The manifest's grid lists architectures, subspace dimensions, numbers of levels and seeds; each
choice is uniform. Then come m = (levels - 1) / 2 magnitudes of 7 bits, and d symbols: a magnitude class under the
Krichevsky-Trofimov estimator (class j of m + 1 has frequency 2 * count_j + 1) and, unless it is 0, a fair sign bit (1
is plus). An architecture lists [kind, width, kernel, stride, pool]: convolutions without padding, kernels cut to the
input's size, a ReLU, averages over windows that do not overlap; "dense" has a kernel as large as its input, and a dense
layer of the scores comes last. Weights of a layer with fan-in f: sqrt(2 / f) * (sqrt(3) * uniform(-1, 1) + signs @
coefficients / sqrt(d)); biases alike, without the uniform. "bank" layers are fixed: first derivatives of a Gaussian in
`width` directions, and the Gaussian. Signs and uniforms are bits of SplitMix64 at counters. An example counts as an
error unless the true class leads every other by more than MARGIN.

"cells" are a bank on padded inputs; its averages become square roots: of edges by direction over the sum of all, of
that sum, of the Gaussian; then cosine transforms over places. The layer of the scores follows at once: its weights and
biases are the coefficients themselves. Magnitudes have seven tables of counts: of biases, and six by place in the
spectrum (whether the horizontal frequency is odd; the vertical one: 0-1, 2-3, more).
"""

import hashlib
import json
import math
import sys
import zipfile
from pathlib import Path

import numpy as np

STANDARD_GRID_SHA256 = {
    "digits": "4ab35dbc26268ce77ae22082824cd5fa050d02b5b30cb4709775493756884571",
    "fashion-mnist": "313b3aa60c32b8a06908b62dbda42a4708e6633ba73ae49bf17b60edf64ab8a3",
    "mnist1d": "aea5b4997293439c10885724899701664fe6c62f8bc412cb6d4010742940ab42",
}
CHOICES = ("architectures", "projections", "subspace_dims", "levels", "seeds")
LINES = ("architecture", "projection", "dimension", "levels", "seed")
MARGIN = 1e-6
MAX_MESSAGE_BYTES = 1 << 24
MAGNITUDE_BITS = 7
MIN_SYMBOLS = 8
TOLERANCE = 1e-6


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
        return self._narrow(symbol, start, frequencies[symbol], total)

    def read_uniform(self, count):
        """Return a number below ``count``, all equally likely."""
        position = ((self.value - self.low + 1) * count - 1) // (self.high - self.low + 1)
        return self._narrow(position, position, 1, count)

    def _narrow(self, symbol, start, frequency, total):
        self.num_bits += math.log2(total / frequency)
        width = self.high - self.low + 1
        self.high = self.low + width * (start + frequency) // total - 1
        self.low += width * start // total
        half, quarter = 1 << 61, 1 << 60
        while True:
            if self.high < half:
                offset = 0
            elif self.low >= half:
                offset = half
            elif self.low >= quarter and self.high < half + quarter:
                offset = quarter
            else:
                return symbol
            bit = self.bits[self.cursor] == "1" if self.cursor < len(self.bits) else 0
            self.cursor += 1
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1
            self.value = 2 * (self.value - offset) + bit


def decode(message, grid):
    """Return (choices, coefficients, ledger in bits) of a message under a grid."""
    decoder, ledger, choices = Decoder(message), {}, {}
    for name, line in (pair for pair in zip(CHOICES, LINES, strict=True) if pair[0] in grid):
        before = decoder.num_bits
        choices[name] = grid[name][decoder.read_uniform(len(grid[name]))]
        ledger[line] = decoder.num_bits - before
    num_classes, tables = (choices["levels"] + 1) // 2, count_tables(choices, grid)
    before = decoder.num_bits
    steps = [decoder.read_uniform(1 << MAGNITUDE_BITS) for _ in range(num_classes - 1)]
    ledger["codebook"] = decoder.num_bits - before
    magnitudes = [0.0, *(2.0 ** ((step - 64) / 8) for step in steps)]
    counts, coefficients, before = [[0] * num_classes for _ in range(7)], [], decoder.num_bits
    for table in tables:
        symbol = decoder.read([2 * count + 1 for count in counts[table]])
        counts[table][symbol] += 1
        sign = -1.0 if symbol and not decoder.read_uniform(2) else 1.0
        coefficients.append(sign * magnitudes[symbol])
    ledger["symbols"] = decoder.num_bits - before
    require(8 * len(message) <= decoder.num_bits + 16, "the message has bytes after its end")
    return choices, np.array(coefficients), ledger


def count_tables(choices, grid):
    """Return for each symbol which table of counts it is coded with."""
    layers, dim = choices.get("architectures", []), choices["subspace_dims"]
    if not layers or layers[0][0] != "cells":
        return [0] * dim
    plan = plan_layers(layers, grid["input_shape"], grid["num_classes"])
    _, channels, count, (height, width), _, _ = plan[1]
    places = [1 + 3 * (x % 2) + min(y // 2, 2) for y in range(height) for x in range(width)]
    tables = places * (channels * count) + [0] * count
    require(len(plan) == 2 and len(tables) == dim, f"cells with {len(plan) - 1} learned layers and {dim} coefficients")
    return tables


def random_words(seed, stream, count):
    """Return ``count`` 64-bit words: SplitMix64 at counters of one stream."""
    start = (seed * 0xD1342543DE82EF95 + stream * 0xDA942042E4DD58B5) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(start) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def layer_start_and_signs(seed, stream, num_values, dim):
    """Return a layer's start, uniform on (-1, 1), and its signs [num_values, dim], before any scale."""
    start = (random_words(seed, 2 * stream, num_values) >> np.uint64(11)) * 2.0**-52 - 1.0
    words = random_words(seed, 2 * stream + 1, num_values * -(-dim // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8).reshape(num_values, -1), axis=1, bitorder="little")[:, :dim]
    return start, 2.0 * bits - 1.0


def plan_layers(architecture, input_shape, num_classes):
    """Return the geometry of each layer: (kind, channels in and out, kernel, stride, pool), pairs for height, width."""
    height, width, channels = input_shape
    plan = []
    for kind, count, size, stride, pool in [*architecture, ["dense", num_classes, 0, 1, 1]]:
        kernel = (height, width) if kind == "dense" else (min(size, height), min(size, width))
        if kind != "cells":  # These are padded.
            height, width = (height - kernel[0]) // stride + 1, (width - kernel[1]) // stride + 1
        window = (min(pool, height), min(pool, width))
        height, width = height // window[0], width // window[1]
        plan.append((kind, channels, count + {"bank": 1, "cells": 2}.get(kind, 0), kernel, stride, window))
        channels = plan[-1][2]
    return plan


def bank_filters(num_angles, kernel):
    """Return the fixed filters [num_angles + 1, height, width]: a Gaussian's derivatives by direction, and itself."""
    ys, xs = (np.arange(size) - (size - 1) / 2 for size in kernel)
    gaussian = np.exp(-(ys[:, None] ** 2 + xs[None, :] ** 2) / (2 * (max(kernel) / 4.5) ** 2))
    angles = [2 * math.pi * index / num_angles for index in range(num_angles)]
    filters = [gaussian * (math.cos(a) * xs[None, :] + math.sin(a) * ys[:, None]) for a in angles]
    scaled = [2 * item / max(np.abs(item).sum(), 1e-12) for item in filters]
    return np.array([*scaled, gaussian / gaussian.sum()])


def build_layers(choices, coefficients, input_shape, num_classes):
    """Return [(weight, bias, kernel, stride, pool), ...] of a message's classifier; cells have no bias."""
    layers, dim = [], len(coefficients)
    plan = plan_layers(choices["architectures"], input_shape, num_classes)
    for index, (kind, channels, count, kernel, stride, pool) in enumerate(plan):
        fan_in = channels * kernel[0] * kernel[1]
        if kind == "bank":
            weight, bias = bank_filters(count - 1, kernel)[:, None] / channels, np.zeros(count)
            weight = np.repeat(weight, channels, axis=1)
        elif kind == "cells":
            filters, bias = bank_filters(count - 2, kernel), None
            weight, count = np.repeat(filters[:, None] / channels, channels, axis=1), count - 1
        elif plan[0][0] == "cells":
            weight, bias = coefficients[: count * fan_in], coefficients[count * fan_in :]
        else:
            start, signs = layer_start_and_signs(choices["seeds"], index, count * (fan_in + 1), dim)
            start[count * fan_in :] = 0.0
            values = math.sqrt(2 / fan_in) * (math.sqrt(3) * start + signs @ coefficients / math.sqrt(dim))
            weight, bias = values[: count * fan_in], values[count * fan_in :]
        layers.append((weight.reshape(count, fan_in), bias, kernel, stride, pool))
    return layers


def cosine_spectrum(cells):
    """Return edges by direction over their sum, that sum, and light: square roots, cosine transforms over places."""
    total = cells[:, :-1].sum(axis=1, keepdims=True)
    maps = np.sqrt(np.concatenate([cells[:, :-1] / (total + 0.05), total, cells[:, -1:]], axis=1))
    for axis in (2, 3):
        size = maps.shape[axis]
        waves = np.cos(math.pi * np.arange(size)[:, None] * (np.arange(size) + 0.5) / size) * math.sqrt(2 / size)
        waves[0] /= math.sqrt(2)
        maps = np.moveaxis(np.tensordot(maps, waves, axes=(axis, 1)), -1, axis)
    return maps


def class_scores(layers, maps):
    """Return scores [n, classes] of inputs [n, channels, height, width]."""
    for index, (weight, bias, kernel, stride, pool) in enumerate(layers):
        if bias is None:
            maps = np.pad(maps, ((0, 0), (0, 0), *((size // 2, size // 2) for size in kernel)))
        patches = np.lib.stride_tricks.sliding_window_view(maps, kernel, axis=(2, 3))[:, :, ::stride, ::stride]
        num, _, height, width = patches.shape[:4]
        rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(num * height * width, -1)
        maps = (rows @ weight.T + (0.0 if bias is None else bias)).reshape(num, height, width, -1).transpose(0, 3, 1, 2)
        if index < len(layers) - 1:
            height, width = height // pool[0], width // pool[1]
            maps = np.maximum(maps, 0.0)[:, :, : height * pool[0], : width * pool[1]]
            maps = maps.reshape(num, -1, height, pool[0], width, pool[1]).mean(axis=(3, 5))
            maps = cosine_spectrum(maps) if bias is None else maps
    return maps.reshape(len(maps), -1)


def find_errors(layers, inputs, labels, input_shape):
    """Return which examples are errors."""
    height, width, channels = input_shape
    return lost_rows(class_scores(layers, inputs.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)), labels)


def lost_rows(scores, labels):
    """Return in which rows the true class does not win; without a clear lead it has not."""
    rows, scores = np.arange(len(labels)), scores.copy()
    true_score = scores[rows, labels]
    scores[rows, labels] = -np.inf
    return ~(true_score - scores.max(axis=1) > MARGIN)


def count_errors(layers, inputs, labels, grid):
    """Return which examples are errors, in parts that fit in memory; twice, with other batch-mates."""

    def errors_of(order, part_size):
        found = np.empty(len(order), dtype=bool)
        for part in np.array_split(order, -(-len(order) // part_size)):
            scaled = inputs[part].astype(np.float64) * grid["input_scale"]
            found[part] = find_errors(layers, scaled, labels[part], grid["input_shape"])
        return found

    errors = errors_of(np.arange(len(labels)), 512)
    again = errors_of(np.argsort(random_words(1, 99, len(labels))), min(301, max(1, len(labels) // 3)))
    require((again == errors).all(), "predictions depend on the other examples of the batch")
    return errors


def _classifier_errors(choices, coefficients, inputs, labels, grid):
    layers = build_layers(choices, coefficients, grid["input_shape"], grid["num_classes"])
    return count_errors(layers, inputs, labels, grid)


CLASSIFIER = ("forerun-certificate", 2, _classifier_errors)  # format, version, how errors are found


def data_sha256(inputs, labels):
    """Return the digest that names a data set, order included."""
    digest = hashlib.sha256(repr(inputs.shape).encode())
    digest.update(np.ascontiguousarray(inputs, dtype="<f8").tobytes())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def check_data(inputs, labels, num_inputs, num_classes):
    """Reject data that cannot be independent draws, or cannot be data of this problem."""
    require(inputs.ndim == 2 and labels.shape == (len(inputs),), f"inputs {inputs.shape} and labels {labels.shape}")
    require(inputs.shape[1] == num_inputs, f"inputs have {inputs.shape[1]} columns, the certificate's {num_inputs}")
    require(np.isfinite(inputs).all(), "inputs contain NaN or infinity")
    require(labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < num_classes, "labels out of range")
    counts = np.bincount(labels, minlength=num_classes)
    require(counts.min() > 0, f"class {int(counts.argmin())} has no example")
    rows = np.ascontiguousarray(inputs + np.zeros(1, inputs.dtype))  # Adding zero makes one of -0.0 and 0.0.
    require(len({row.tobytes() for row in rows}) == len(rows), "inputs are repeated: these are not independent draws")
    stratified = len(inputs) >= 20 * num_classes and counts.min() == counts.max()
    require(not stratified, "every class has the same count: a stratified sample is no independent draw")


def binomial_bound(num_errors, num_samples, complexity):
    """Return the largest p at which num_errors or fewer have probability exp(-complexity); in log space."""
    if num_errors == num_samples:
        return 1.0
    ks, low, high = np.arange(num_errors + 1), num_errors / num_samples, 1.0
    top = math.lgamma(num_samples + 1)
    log_choose = np.array([top - math.lgamma(k + 1) - math.lgamma(num_samples - k + 1) for k in ks])
    while high - low > 1e-12:
        p = (low + high) / 2
        terms = log_choose + ks * math.log(p) + (num_samples - ks) * math.log1p(-p)
        peak = terms.max()
        if peak + math.log(np.exp(terms - peak).sum()) < -complexity:
            high = p
        else:
            low = p
    return high


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


def measure(manifest, message, inputs, labels, kind=CLASSIFIER):
    """Return what a message is worth: its ledger, its bits, its errors; a ValueError says why it is worth nothing."""
    grid = manifest["grid"]
    require(len(message) > 0, "the message is empty: a model of zero bits certifies nothing")
    require(min(grid["subspace_dims"]) >= MIN_SYMBOLS, f"the grid has fewer than {MIN_SYMBOLS} dimensions")
    require(grid["magnitude_bits"] == MAGNITUDE_BITS, "the grid has another codebook than format 2")
    check_data(inputs, labels, math.prod(grid["input_shape"]), grid["num_classes"])
    choices, coefficients, ledger = decode(message, grid)
    require(sum(ledger.values()) > 0, "the message costs nothing: a model of zero bits certifies nothing")
    errors = kind[2](choices, coefficients, inputs, labels, grid)
    return {
        "choices": choices, "coefficients": [float(value) for value in coefficients], "ledger_bits": ledger,
        "code_length_bits": sum(ledger.values()), "num_errors": int(errors.sum()), "num_samples": len(labels),
    }  # fmt: skip


def verify(path, inputs, labels, expected_grid_sha256=None, kind=CLASSIFIER):
    """Return the recomputed numbers of a certificate that holds; a ValueError says why it does not."""
    manifest, message = read_certificate(path)
    try:
        require((manifest["format"], manifest["version"]) == kind[:2], "unknown format or version")
        claims, delta = manifest["claims"], manifest["delta"]
        require(isinstance(delta, float) and 0 < delta < 1, f"delta={delta} is not strictly between 0 and 1")
        grid_digest = grid_sha256(manifest["grid"])
        allowed = expected_grid_sha256 or STANDARD_GRID_SHA256.get(manifest["task"])
        require(allowed is not None, f"name the grid fixed beforehand: --grid-sha256 (this one is {grid_digest})")
        require(grid_digest == allowed, "the grid is not the one that was fixed before the data")
        require(manifest["data_sha256"] == data_sha256(inputs, labels), "these are not the data of the certificate")
        require(manifest["message_sha256"] == hashlib.sha256(message).hexdigest(), "the message has been changed")
        found = measure(manifest, message, inputs, labels, kind)
        complexity = found["code_length_bits"] * math.log(2) - math.log(delta)
        found["risk_bound"] = binomial_bound(found["num_errors"], found["num_samples"], complexity)
        chance = 1 - 1 / manifest["grid"]["num_classes"]
        found["is_vacuous"] = found["risk_bound"] >= chance
        for name in ("num_errors", "num_samples", "code_length_bits", "risk_bound", "is_vacuous"):
            same = abs(claims[name] - found[name]) <= TOLERANCE
            require(same, f"{name} is {found[name]}, the certificate claims {claims[name]}")
        require(claims["ledger_bits"].keys() == found["ledger_bits"].keys(), "the ledger has other lines")
        for line, bits in found["ledger_bits"].items():
            require(abs(claims["ledger_bits"][line] - bits) <= TOLERANCE, f"the ledger's {line} is {bits} bits")
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"the manifest is malformed ({type(error).__name__}: {error})") from error
    return found


def main(arguments, kind=CLASSIFIER):
    """Verify or measure, and write the answer; returns the exit status."""
    options, paths = ([item for item in arguments if item.startswith("--") == flag] for flag in (True, False))
    expected = [item.partition("=")[2] for item in options if item.startswith("--grid-sha256=")]
    if len(paths) != 2 or any(not item.startswith(("--measure", "--json", "--grid-sha256=")) for item in options):
        sys.stderr.write("use: verifier.py CERTIFICATE.zip DATA.npz [--json] [--grid-sha256=HEX] [--measure]\n")
        return 2
    try:
        with np.load(Path(paths[1]), allow_pickle=False) as data:
            inputs, labels = data["inputs"], data["labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        sys.stderr.write(f"{paths[1]}: not an .npz file with inputs and labels ({error})\n")
        return 2
    try:
        measured = measure(*read_certificate(paths[0]), inputs, labels, kind) if "--measure" in options else None
        found = measured or verify(paths[0], inputs, labels, expected[0] if expected else None, kind)
        answer = {"accepted": True, "reason": None, **found}
    except ValueError as error:
        answer = {"accepted": False, "reason": str(error)}
    if "--json" in options or "--measure" in options:
        sys.stdout.write(json.dumps(answer) + "\n")
    elif answer["accepted"]:
        text = "yes: error at most {risk_bound:.4f}, {num_errors} of {num_samples} wrong, {code_length_bits:.1f} bits\n"
        sys.stdout.write(text.format(**answer))
    else:
        sys.stdout.write(f"no: {answer['reason']}\n")
    return 0 if answer["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
