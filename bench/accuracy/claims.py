"""The claims about recipes. Only these are checked against the records; other pipelines need not be measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from bench.accuracy.measured import Measured
from sparsekit.evaluation.rows import Row


@dataclass(frozen=True)
class Claim:
    """A claim about a recipe, for the tasks that count, on every model and length in the records."""

    sure_loss: bool = True  # True allows significantly fewer answers than dense, in all or on one task
    answers: float = 0.0  # least answers / dense, in [0, 1], at each model and length
    average: float = 0.0  # least mean of answers / dense over models and lengths
    text: float | None = None  # upper bound of the interval of the loss on following text, nats per token

    def __str__(self) -> str:
        parts = [] if self.sure_loss else ["no sure loss of answers, in all or of one task"]
        mean = f", {self.average:.0%} on average" if self.average else ""
        parts += [f"at least {self.answers:.0%} of dense attention's answers{mean}"] if self.answers else []
        parts += [f"following text loses less than {self.text:g} nats a token"] if self.text else []
        return "; ".join(parts)


CLAIMS: Mapping[str, Claim] = {
    "lossless": Claim(sure_loss=False, text=0.003),
    "balanced": Claim(answers=0.97, average=0.99, text=0.01),
    "fast": Claim(answers=0.95),
}
ENOUGH = 200  # answers that a claim needs, at each model and length


def broken(models: Iterable[Measured], claims: Mapping[str, Claim] = CLAIMS, enough: int | None = None) -> list[str]:
    """Return a sentence for each claim that the records do not confirm, and for each missing measurement.

    `enough` is the number of answers that must be recorded at each model and length; None means `ENOUGH`.
    """
    enough = ENOUGH if enough is None else enough
    models, found = list(models), []
    for recipe, claim in claims.items():
        parts = []
        for measured in models:
            for length in measured.lengths:
                where = f"{recipe} on {measured.model} at {measured.named(length)}"
                row = measured.recipe(recipe, length)
                if not measured.dense(length).right:  # no task counts at this length: the page says so
                    continue
                if not row or not row.right:
                    found.append(f"{where}: claimed, and not measured")
                    continue
                parts.append(row.right.value / row.dense_part if row.dense_part else 1.0)
                found += [f"{where}: {fault}" for fault in _faults(claim, measured, row, parts[-1], enough)]
        if parts and fmean(parts) < claim.average:
            found.append(f"{recipe}: {fmean(parts):.1%} of dense attention's answers on average")
    return found


def _faults(claim: Claim, measured: Measured, row: Row, part: float, enough: int) -> list[str]:
    """Return the parts of a claim that do not hold at one model and length."""
    found = []
    if (asked := measured.answers(row)) < enough:
        found.append(f"{asked} answers, fewer than {enough}")
    if part < claim.answers:
        found.append(f"{part:.1%} of dense attention's answers")
    if not claim.sure_loss:
        losses = {"all tasks": row.difference} | measured.differences(row)
        found += [f"a sure loss, {name}" for name, gap in losses.items() if gap and gap.high < 0]
    if claim.text is not None:
        if row.text is None:
            found.append("text that follows was not read")
        elif row.text.high >= claim.text:
            found.append(f"text that follows loses up to {row.text.high:.4f} nats a token")
    return found
