"""`adapters.transformers` as a user writes it: a model and a Trainer that know nothing of the alternation."""

from typing import Any, assert_type

from adapters.transformers import AlternatingCallback
from alternator import Alternator, Cycle

NAMES = ("backbone", "head")


def main() -> None:
    alternator = Alternator(NAMES, rule=Cycle(2))
    callback = AlternatingCallback(alternator, {"backbone": "bert", "head": "classifier"}, turns={n: n for n in NAMES})
    assert_type(callback.alternator, Alternator)
    assert_type(callback.active, str)
    assert_type(callback.state(), dict[str, Any])
    callback.record(0.5)
    callback.record({"backbone": 0.5, "head": 0.25}, summed=True)
    AlternatingCallback(alternator, {"backbone": "bert", "head": "classifier"}, losses=lambda outputs: outputs.loss)
    callback.close()


def misuse(callback: AlternatingCallback, alternator: Alternator) -> None:
    AlternatingCallback(NAMES, {})  # type: ignore[arg-type]
    AlternatingCallback(alternator, {"backbone": 3})  # type: ignore[dict-item]
    AlternatingCallback(alternator, {}, turns={"both": 2})  # type: ignore[dict-item]
    callback.record("0.5")  # type: ignore[arg-type]
    callback.active = "head"  # type: ignore[misc]


if __name__ == "__main__":
    main()
