"""The normative code: an integer arithmetic coder, exact on every machine.

A model of the message says, symbol by symbol, in which of ``total`` equal parts of the current interval the symbol
lies: ``frequency`` parts from ``start`` on. The product of ``frequency / total`` is the message's probability P, and
the code is at most a few bits longer than -log2 P. As frequencies are integers, P is an exact rational number: the
bound may use it without a word about rounding.

Reference:
    Witten, Neal, Cleary, "Arithmetic coding for data compression", Commun. ACM 30(6), 1987: interval halving with
    pending bits. Ours has 62-bit registers, so that rounding costs under 1e-8 bits a symbol at totals up to 2**32.
"""

from typing import Final

from forerun.core.errors import CertificateError

REGISTER_BITS: Final = 62
MAX_TOTAL: Final = 1 << 32
"""The largest sum of frequencies that a symbol may be coded with."""

_TOP: Final = (1 << REGISTER_BITS) - 1
_HALF: Final = 1 << (REGISTER_BITS - 1)
_QUARTER: Final = 1 << (REGISTER_BITS - 2)


class ArithmeticEncoder:
    """Codes symbols one by one; :meth:`finish` gives the bytes."""

    def __init__(self) -> None:
        self._low, self._high, self._num_pending = 0, _TOP, 0
        self._bits: list[int] = []

    def encode(self, start: int, frequency: int, total: int) -> None:
        """Narrow the interval to one symbol.

        Args:
            start: Sum of the frequencies of the symbols before it.
            frequency: Its own, at least 1.
            total: Sum over all symbols, at most :data:`MAX_TOTAL`.

        Raises:
            ValueError: The numbers do not describe a part of the interval.
        """
        if not (start >= 0 and frequency >= 1 and start + frequency <= total <= MAX_TOTAL):
            raise ValueError(
                f"start={start}, frequency={frequency}, total={total}: need 0 <= start, 1 <= frequency, "
                f"start + frequency <= total <= {MAX_TOTAL}"
            )
        width = self._high - self._low + 1
        self._high = self._low + width * (start + frequency) // total - 1
        self._low += width * start // total
        while True:
            if self._high < _HALF:
                self._emit(0)
            elif self._low >= _HALF:
                self._emit(1)
                self._low -= _HALF
                self._high -= _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                self._num_pending += 1
                self._low -= _QUARTER
                self._high -= _QUARTER
            else:
                return
            self._low = 2 * self._low
            self._high = 2 * self._high + 1

    def finish(self) -> bytes:
        """Return the code, padded with zero bits to whole bytes; the decoder reads zeros after its end."""
        self._num_pending += 1
        self._emit(0 if self._low < _QUARTER else 1)
        while self._bits and not self._bits[-1]:
            self._bits.pop()
        text = "".join(map(str, self._bits))
        num_bytes = -(-len(text) // 8)
        return int(text.ljust(8 * num_bytes, "0") or "0", 2).to_bytes(num_bytes, "big")

    def _emit(self, bit: int) -> None:
        self._bits.append(bit)
        self._bits.extend([1 - bit] * self._num_pending)
        self._num_pending = 0


class ArithmeticDecoder:
    """Reads what :class:`ArithmeticEncoder` wrote: ask :meth:`position`, find the symbol, tell :meth:`consume`.

    Args:
        code: The bytes.
    """

    def __init__(self, code: bytes) -> None:
        self._code, self._cursor = code, 0
        self._low, self._high, self._value = 0, _TOP, 0
        for _ in range(REGISTER_BITS):
            self._value = 2 * self._value + self._next_bit()

    def position(self, total: int) -> int:
        """Return where in ``range(total)`` the next symbol lies; its frequencies enclose this number."""
        if not 1 <= total <= MAX_TOTAL:
            raise ValueError(f"total={total}: must be 1 to {MAX_TOTAL}")
        return ((self._value - self._low + 1) * total - 1) // (self._high - self._low + 1)

    def consume(self, start: int, frequency: int, total: int) -> None:
        """Go past a symbol; the arguments are those it was encoded with.

        Raises:
            CertificateError: The code cannot contain this symbol here.
        """
        if not start <= self.position(total) < start + frequency:
            raise CertificateError("the coded message is corrupt: a symbol lies outside its interval; get a fresh copy")
        width = self._high - self._low + 1
        self._high = self._low + width * (start + frequency) // total - 1
        self._low += width * start // total
        while True:
            if self._high < _HALF:
                offset = 0
            elif self._low >= _HALF:
                offset = _HALF
            elif self._low >= _QUARTER and self._high < _HALF + _QUARTER:
                offset = _QUARTER
            else:
                return
            self._low = 2 * (self._low - offset)
            self._high = 2 * (self._high - offset) + 1
            self._value = 2 * (self._value - offset) + self._next_bit()

    def _next_bit(self) -> int:
        index, self._cursor = self._cursor, self._cursor + 1
        if index >= 8 * len(self._code):
            return 0
        return self._code[index // 8] >> (7 - index % 8) & 1
