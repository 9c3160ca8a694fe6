"""The built-in corpus: English-like sentences from a probabilistic grammar whose factors and probabilities are known.

A sentence is made of 13 independent factors, such as "did our brave sailors not watch many trains near the river ?".
No two choices of factors give the same sentence, so log p(sentence) = sum of log p(factor), and the entropy of the
corpus is exact: a model's NLL can be held against the best possible one, and a latent against the true factors.
"""

import math

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

NONE = "none"  # the value of a factor that is left out of the sentence

_SUBJECTS = """king:kings queen:queens sailor:sailors teacher:teachers farmer:farmers doctor:doctors painter:painters
baker:bakers driver:drivers student:students soldier:soldiers lawyer:lawyers singer:singers dancer:dancers
hunter:hunters miller:millers tailor:tailors guard:guards pilot:pilots poet:poets monk:monks nurse:nurses
judge:judges clerk:clerks widow:widows thief:thieves cook:cooks girl:girls boy:boys uncle:uncles cousin:cousins
neighbour:neighbours traveller:travellers stranger:strangers merchant:merchants priest:priests spy:spies
tourist:tourists shepherd:shepherds wolf:wolves"""
_VERBS = """watch:watches:watched paint:paints:painted carry:carries:carried find:finds:found sell:sells:sold
buy:buys:bought hide:hides:hid steal:steals:stole break:breaks:broke build:builds:built clean:cleans:cleaned
count:counts:counted describe:describes:described draw:draws:drew drop:drops:dropped examine:examines:examined
follow:follows:followed forget:forgets:forgot guess:guesses:guessed hold:holds:held like:likes:liked
lose:loses:lost move:moves:moved need:needs:needed open:opens:opened praise:praises:praised push:pushes:pushed
remember:remembers:remembered repair:repairs:repaired save:saves:saved send:sends:sent show:shows:showed
take:takes:took throw:throws:threw touch:touches:touched wash:washes:washed"""
_OBJECTS = """letter:letters book:books boat:boats lamp:lamps coin:coins map:maps clock:clocks train:trains
picture:pictures table:tables chair:chairs window:windows door:doors basket:baskets bottle:bottles box:boxes
candle:candles carpet:carpets cart:carts crown:crowns cup:cups dress:dresses drum:drums flag:flags guitar:guitars
hammer:hammers hat:hats jewel:jewels kettle:kettles key:keys knife:knives ladder:ladders mirror:mirrors
necklace:necklaces parcel:parcels ring:rings rope:ropes shirt:shirts sword:swords wheel:wheels"""
_QUALITIES = """old young brave clever tired happy lonely famous gentle proud quiet rich poor tall honest lazy
nervous strange wise busy"""
_ADVERBS = """quietly quickly slowly carefully gladly badly secretly bravely calmly eagerly politely rarely
suddenly twice"""
_PLACES = """in the garden|near the river|at the station|in the kitchen|behind the church|on the bridge|in the forest
|at the market|under the tower|beside the road|near the harbour|in the castle|at the school|on the hill"""
_TIMES = """at dawn|before noon|after dinner|on sunday|at midnight|in winter|in summer|during the storm|after the war
|before breakfast"""


def _zipf(values: list[str], exponent: float, none: float = 0.0) -> dict[str, float]:
    """Values with probabilities falling as 1 / (rank + 2)^exponent, after a share `none` for leaving them out."""
    weights = [(rank + 3) ** -exponent for rank in range(len(values))]
    chances = {NONE: none} if none else {}
    return chances | {value: (1 - none) * weight / sum(weights) for value, weight in zip(values, weights, strict=True)}


_NOUN_FORMS = {word.split(":")[0]: word.split(":") for word in (_SUBJECTS + " " + _OBJECTS).split()}
_VERB_FORMS = {word.split(":")[0]: word.split(":") for word in _VERBS.split()}
# How an object stands: the word before it, and whether the noun is then a plural.
_OBJECT_FORMS = {"a": 0, "the": 0, "that": 0, "some": 1, "many": 1, "two": 1}

FACTORS: dict[str, dict[str, float]] = {
    "mood": {"statement": 0.8, "question": 0.2},
    "tense": {"past": 0.45, "present": 0.35, "future": 0.2},
    "polarity": {"positive": 0.7, "negative": 0.3},
    "number": {"singular": 0.6, "plural": 0.4},
    "determiner": {"the": 0.5, "my": 0.2, "our": 0.2, "their": 0.1},
    "quality": _zipf(_QUALITIES.split(), 0.7, none=0.5),
    "subject": _zipf([word.split(":")[0] for word in _SUBJECTS.split()], 0.8),
    "verb": _zipf(list(_VERB_FORMS), 0.8),
    "object_form": {"a": 0.35, "the": 0.25, "that": 0.1, "some": 0.15, "many": 0.1, "two": 0.05},
    "object": _zipf([word.split(":")[0] for word in _OBJECTS.split()], 0.8),
    "adverb": _zipf(_ADVERBS.split(), 0.7, none=0.6),
    "place": _zipf([place.strip() for place in _PLACES.split("|")], 0.7, none=0.5),
    "time": _zipf([time.strip() for time in _TIMES.split("|")], 0.7, none=0.6),
}
"""Every factor with its values and their probabilities, in the order they are drawn."""


def entropy() -> float:
    """Entropy of a sentence in nats: the NLL that no model of the corpus can beat on average."""
    return -sum(p * math.log(p) for values in FACTORS.values() for p in values.values())


def log_prob(factors: dict[str, str]) -> float:
    """log p of the sentence with these factors, in nats."""
    return sum(math.log(FACTORS[name][factors[name]]) for name in FACTORS)


def realise(factors: dict[str, str]) -> str:
    """The sentence that has these factors."""
    plural, tense = factors["number"] == "plural", factors["tense"]
    base, third_person, past = _VERB_FORMS[factors["verb"]]
    subject = [factors["determiner"], factors["quality"], _NOUN_FORMS[factors["subject"]][plural]]
    negation = ["not"] if factors["polarity"] == "negative" else []
    auxiliary = {"past": "did", "present": "do" if plural else "does", "future": "will"}[tense]
    if factors["mood"] == "question":
        clause = [auxiliary, *subject, *negation, base]
    elif negation or tense == "future":
        clause = [*subject, auxiliary, *negation, base]
    else:
        clause = [*subject, past if tense == "past" else base if plural else third_person]
    noun = _NOUN_FORMS[factors["object"]][_OBJECT_FORMS[factors["object_form"]]]
    rest = [factors["object_form"], noun, factors["adverb"], factors["place"], factors["time"]]
    mark = "?" if factors["mood"] == "question" else "."
    return " ".join(word for word in [*clause, *rest, mark] if word != NONE)


# What each word or phrase says about the factors. Determiners before the verb and after it are told apart by place.
_MEANINGS: dict[str, dict[str, str]] = {"not": {"polarity": "negative"}, "did": {"tense": "past"}}
_MEANINGS |= {"do": {"tense": "present"}, "does": {"tense": "present"}, "will": {"tense": "future"}}
for _name in ("quality", "adverb", "place", "time"):
    _MEANINGS |= {value: {_name: value} for value in FACTORS[_name] if value != NONE}
for _name, _number in (("subject", "number"), ("object", None)):
    for _noun in FACTORS[_name]:
        for _form, _value in zip(_NOUN_FORMS[_noun], ("singular", "plural"), strict=True):
            _MEANINGS[_form] = {_name: _noun} | ({_number: _value} if _number else {})
for _base, _third, _past in _VERB_FORMS.values():
    _MEANINGS |= {_base: {"verb": _base}, _third: {"verb": _base, "tense": "present"}}
    _MEANINGS[_past] = {"verb": _base, "tense": "past"}


def parse(sentence: str) -> dict[str, str] | None:
    """The factors of a sentence, or None where the grammar does not make it: an exact oracle for generated text."""
    words = sentence.split()
    factors = {"polarity": "positive", "quality": NONE, "adverb": NONE, "place": NONE, "time": NONE}
    factors |= {"mood": "question" if words[-1:] == ["?"] else "statement", "tense": "present"}
    i = 0
    while i < len(words) - 1:
        width = next((w for w in (3, 2) if " ".join(words[i : i + w]) in _MEANINGS), 1)
        phrase = " ".join(words[i : i + width])
        if phrase in _MEANINGS:
            factors |= _MEANINGS[phrase]
        else:
            factors["object_form" if "verb" in factors else "determiner"] = phrase
        i += width
    valid = all(factors.get(name) in values for name, values in FACTORS.items())
    return factors if valid and realise(factors) == sentence else None


def generate_corpus(num_train: int = 20_000, num_validation: int = 2_000, num_test: int = 2_000, seed: int = 42):
    """Draw a corpus; the same seed gives the same sentences.

    Args:
        num_train, num_validation, num_test: sentences per split.
        seed: of the draw; each split has a stream of its own, so its sentences do not depend on the others' number.

    Returns:
        a `DatasetDict` of "train", "validation" and "test" with the columns `text`, `true_log_prob` (of the sentence
        under the grammar, in nats) and one `ClassLabel` for each of [`FACTORS`].
    """
    features = {"text": Value("string"), "true_log_prob": Value("float64")}
    features |= {name: ClassLabel(names=list(values)) for name, values in FACTORS.items()}
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    streams = np.random.SeedSequence(seed).spawn(len(sizes))
    return DatasetDict(
        {
            split: Dataset.from_dict(_draw(size, np.random.default_rng(stream)), features=Features(features))
            for (split, size), stream in zip(sizes.items(), streams, strict=True)
        }
    )


def _draw(num_sentences: int, rng: np.random.Generator) -> dict[str, list]:
    columns = {
        name: rng.choice(list(values), num_sentences, p=list(values.values())).tolist()
        for name, values in FACTORS.items()
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"text": [realise(row) for row in rows], "true_log_prob": [log_prob(row) for row in rows], **columns}
