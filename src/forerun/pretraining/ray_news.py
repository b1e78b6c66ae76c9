"""What runs on Ray tell of themselves, in a module that imports nothing: its actor starts in no time."""


class News:
    """An actor that keeps what runs told last, until it is asked."""

    def __init__(self) -> None:
        self._heard: dict[tuple[int, int], tuple[int, int, str]] = {}

    def tell(self, call: int, index: int, done: int, total: int, detail: str) -> None:
        """Take what a run tells.

        Args:
            call: Which call the run belongs to; a word that comes late is not taken for one of the next call.
            index: Of the run.
            done: Steps made.
            total: Of so many.
            detail: In words.
        """
        self._heard[call, index] = (done, total, detail)

    def take(self, call: int) -> dict[int, tuple[int, int, str]]:
        """Return what runs of a call told since this was last asked, by run; what others told is dropped.

        Args:
            call: The call.
        """
        heard, self._heard = self._heard, {}
        return {index: told for (of_call, index), told in heard.items() if of_call == call}
