"""Many examples of sentences with labels; every kind of sentence has one label. The question gives further sentences.

Labels are made up, so only the examples show which kind has which. Names and numbers vary, so a sentence in the
question need not occur among the examples. Each label is a value. The whole document consists of examples; every kind
occurs once in each round of them.
"""

from collections.abc import Iterator
from random import Random

from ..question import Question, lines
from ..vocabulary import CITIES, PEOPLE, WORDS, made_up

ASKED = 4  # kinds of sentences; the question has one sentence of each
KINDS = (
    "The train to {city} leaves at {number}",
    "{person} bought a new {word} yesterday",
    "The weather in {city} will be sunny tomorrow",
    "{person} plays the piano every evening",
    "The soup needs more {word} and salt",
    "Please send the report to {person}",
    "The team from {city} won the match",
    "My computer shows error {number}",
)
PHRASINGS = ("{sentence} -> {label}", "{sentence}: {label}", "Sentence: {sentence} / Label: {label}")
INTROS = (
    "Below are many examples of sentences with a label each. Learn from them which label sentences of a kind have.",
    "Each line below labels a sentence. Sentences of a kind always have the same label. Learn the labels.",
)


def many_shot(rng: Random) -> Question:
    """Return the request for the labels of ASKED sentences."""
    phrasing = rng.choice(PHRASINGS)
    labels = dict(zip(rng.sample(KINDS, ASKED), made_up(rng, ASKED, 2), strict=True))
    wanted = [(_sentence(rng, kind), label) for kind, label in labels.items()]
    lead = phrasing.partition("{label}")[0]
    return Question(
        asked="Label the following sentences in the same way. Answer with one line for each of them, in this order, in "
        f'the form "{phrasing.format(sentence="SENTENCE", label="LABEL")}"\n'
        + "\n".join(sentence for sentence, _ in wanted),
        reply=lines([(lead.format(sentence=sentence), label) for sentence, label in wanted]),
        intro=rng.choice(INTROS),
        least=3 * ASKED,
        rows=_examples(Random(rng.random()), phrasing, labels),
    )


def _examples(rng: Random, phrasing: str, labels: dict[str, str]) -> Iterator[str]:
    while True:
        for kind in rng.sample(list(labels), len(labels)):
            yield phrasing.format(sentence=_sentence(rng, kind), label=labels[kind])


def _sentence(rng: Random, kind: str) -> str:
    number = rng.randrange(100, 1000)
    return kind.format(city=rng.choice(CITIES), person=rng.choice(PEOPLE), word=rng.choice(WORDS), number=number)
