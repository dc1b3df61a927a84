"""`alternator` as a user writes it: an alternator and its answers, and a rule of one's own."""

from dataclasses import dataclass
from typing import Any, NamedTuple, assert_type

from alternator import Alternator, Decision, Facts, ModuleStats, Plateau, Replay, Rule, Stats, Switch, Verdict, replay


class Counted(NamedTuple):
    switches: int


@dataclass(frozen=True)
class BelowTarget:
    """Hands over once the newest loss is below a target."""

    target: float
    ring_size: int = 1

    def init(self, num_modules: int) -> Counted:
        return Counted(0)

    def step(self, state: Counted, facts: Facts) -> tuple[Counted, Verdict]:
        ring = facts.rings[facts.active]
        below = bool(ring) and ring[-1] < self.target
        return Counted(state.switches + below), Verdict(below, "below target", ring[-1] if ring else 0.0, self.target)


def main() -> None:
    rule: Rule = BelowTarget(target=0.1)
    alternator = Alternator(("encoder", "head"), rule=rule)
    decision = alternator.observe({"encoder": 0.7, "head": 0.5})
    assert_type(decision, Decision)
    assert_type(alternator.observe(0.1), Decision)
    assert_type(decision.active, str)
    assert_type(decision.switched, bool)
    assert_type(decision.value, float)
    assert_type(decision.explain(), str)
    alternator.expect(num_steps=1000, turns={"encoder": "encoder", "head": ("encoder", "head")})
    assert_type(alternator.num_steps, int | None)
    alternator.record("head", 0.4, step=2)
    assert_type(alternator.advance(updated=False), Decision)
    stats = alternator.stats()
    assert_type(stats, Stats)
    assert_type(stats.modules, dict[str, ModuleStats])
    assert_type(stats.modules["head"].recent_loss, float | None)
    assert_type(alternator.get_stats(), dict[str, Any])
    assert_type(alternator.modules, tuple[str, ...])
    assert_type(alternator.loss_history("head"), list[float])
    state = alternator.state_dict()
    assert_type(state, dict[str, Any])
    alternator.load_state_dict(state)
    replayed = replay({"encoder": [0.7, None], "head": [None, 0.5]}, Plateau(threshold=0.02))
    assert_type(replayed, Replay)
    assert_type(replayed.switches, tuple[Switch, ...])


def misuse(alternator: Alternator) -> None:
    Alternator(2)  # type: ignore[arg-type]
    Alternator(("encoder", "head"), rule="plateau")  # type: ignore[arg-type]
    Alternator(("encoder", "head"), rule=Counted(0))  # type: ignore[arg-type]
    Plateau(threshold="0.01")  # type: ignore[arg-type]
    Plateau(0.01)  # type: ignore[call-arg]
    alternator.observe("0.7")  # type: ignore[arg-type]
    alternator.observe([0.7, 0.5])  # type: ignore[arg-type]
    alternator.record(0, 0.4)  # type: ignore[arg-type]
    alternator.stats().total_steps = 3  # type: ignore[misc]
    _ = alternator.observe(0.1).module  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
