"""One pass through a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitkit.nn.module import Module


class Seeds:
    """Keys by counting: the same count gives the same key, so a pass can be replayed."""

    def __init__(self, seed: int, step: int, drawn: int = 0) -> None:
        self.seed = seed
        self.step = step
        self.drawn = drawn

    def next(self) -> tuple[int, int, int]:
        """Return the key of the next random draw: seed, step, and how many came before."""
        self.drawn += 1
        return self.seed, self.step, self.drawn


class Context:
    """What a forward pass leaves for its backward pass.

    A stack of arrays, each entry tagged with the module that pushed it, together with the two
    things every layer may ask of the pass: whether it is training, and a fresh random key.
    Backward visits the modules in exactly the reverse order, so it pops what forward pushed, and
    an entry is freed as soon as its layer has used it.

    Parameters
    ----------
    train : bool, default False
        Whether dropout and drop path are active.
    seed : int, default 0
        The run's seed, from which dropout draws.
    step : int, default 0
        Which pass of the run this is; two passes with the same seed and step draw the same.
    keep : bool, optional
        Whether arrays are kept for backward. By default they are when ``train`` is true. A pass
        with ``train=False, keep=True`` gives the gradients of inference.
    input_gradient : bool, default True
        Whether the gradient of what comes into the whole model is wanted, as to explain an answer.
        Training does without: a model may then return None for it, and save the work.
    """

    def __init__(
        self,
        *,
        train: bool = False,
        seed: int = 0,
        step: int = 0,
        keep: bool | None = None,
        input_gradient: bool = True,
    ) -> None:
        self.train = train
        self.input_gradient = input_gradient
        self.keep = train if keep is None else keep
        self.seeds = Seeds(seed, step)
        self._entries: list[tuple[Module, tuple[Any, ...]]] = []

    def push(self, owner: Module, *kept: Any) -> None:
        """Keep what ``owner`` needs until it runs backward."""
        if self.keep:
            self._entries.append((owner, kept))

    def pop(self, owner: Module) -> tuple[Any, ...]:
        """Take back what ``owner`` pushed last.

        Raises
        ------
        RuntimeError
            If nothing is kept, or another module's arrays are on top.
        """
        if not self._entries:
            raise RuntimeError(
                f"{owner.label} ran backward but nothing of a forward pass is left. Run forward "
                "first, with Context(train=True) or Context(keep=True), and backward once."
            )
        pusher, kept = self._entries.pop()
        if pusher is not owner:
            self._entries.append((pusher, kept))
            raise RuntimeError(
                f"Backward out of order: {owner.label} asked for its arrays but those of "
                f"{pusher.label} are on top. Run backward in the reverse order of forward."
            )
        return kept

    def pop_if_last(self, owner: Module) -> tuple[Any, ...] | None:
        """Take back what ``owner`` pushed last, or return None where it was not the last to push.

        So a layer with two ways forward says which it took.
        """
        if self._entries and self._entries[-1][0] is owner:
            return self._entries.pop()[1]
        return None

    def forgetting(self) -> Context:
        """Return the same pass, drawing from the same seeds, with nothing kept."""
        other = Context(train=self.train, keep=False, input_gradient=self.input_gradient)
        other.seeds = self.seeds
        return other

    def replay(self, drawn: int) -> Context:
        """Return a pass that keeps, and draws again the keys that followed count ``drawn``."""
        other = Context(train=self.train, keep=True, input_gradient=self.input_gradient)
        other.seeds = Seeds(self.seeds.seed, self.seeds.step, drawn)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays kept now; an array kept twice counts once."""
        arrays = {id(a): a for _, kept in self._entries for a in kept if hasattr(a, "nbytes")}
        return sum(array.nbytes for array in arrays.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        """Be true even when nothing is kept, so that ``ctx or Context()`` is no trap."""
        return True
