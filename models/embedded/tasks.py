"""The generated text the embedded model is trained and measured on.

Six tasks. Each draws a *content* (what is said) and renders it in one *phrasing* (how it is asked). A hash
of the content decides whether it is held out, so a held-out combination never occurs in training under any
phrasing; the last phrasing of each task is never trained on.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Split = Literal["train", "held_out", "unseen_phrasing"]
Message = tuple[str, str]

HELD_OUT_ONE_IN = 20


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt and the only right answer to it.

    `content` names what the item says apart from its phrasing; its hash decides the split. `messages` is set
    for dialogues alone: the same turns as (role, content) pairs for the chat template, `prompt` being their
    plain text.
    """

    task: str
    prompt: str
    answer: str
    phrasing: int
    content: str
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """What an item says: `key` identifies it, `fields` fill the templates of a phrasing.

    What is `training_only` is never measured; where its hash holds it out, it is not trained on either.
    """

    key: str
    fields: dict[str, str]
    training_only: bool = False


@dataclass(frozen=True, slots=True)
class Phrasing:
    """Templates over the fields of a content: one turn, or three for a dialogue (user, assistant, user)."""

    turns: tuple[str, ...]
    answer: str = "{answer}"


@dataclass(frozen=True, slots=True)
class Task:
    """A task: how to draw a content, and the phrasings, the last of which is never trained on."""

    name: str
    draw: Callable[[random.Random], Content]
    phrasings: tuple[Phrasing, ...]


T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """Split a list written as one string."""
    return tuple(text.split())


def pick(rng: random.Random, options: tuple[T, ...]) -> T:
    """Draw one option."""
    return options[int(rng.random() * len(options))]


def single(*templates: str) -> tuple[Phrasing, ...]:
    """Phrasings of one user turn each."""
    return tuple(Phrasing((template,)) for template in templates)


NAMES = words(
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jack Lena Max Nina Oscar Paula Quinn Rosa Sam Tina "
    "Victor Wendy Yusuf Zoe Adam Bella Carl Dora Eric Fiona Gina Henry Iris Jonas Karen Leo Maria Noah "
    "Olga Peter Ruth Simon Tom"
)
CITIES = words(
    "Paris London Rome Berlin Madrid Vienna Oslo Dublin Lisbon Prague Athens Cairo Tokyo Delhi Lima "
    "Boston Chicago Dallas Geneva Milan Naples Porto Seoul Warsaw"
)
PLACES = words(
    "market school library park station museum bakery harbour garden office theatre village hospital "
    "bank airport hotel castle beach factory farm church cafe zoo shop"
)
FOODS = words(
    "apples bread cheese coffee tea rice soup fish honey grapes pasta salad chocolate lemons cake nuts milk"
)
THINGS = words("coat hat bike house car bag boat lamp phone guitar chair shirt")
COLOURS = words("red blue green black white yellow brown grey pink purple")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = words("two three four five six seven eight nine ten eleven twelve")


COPIED = (*NAMES, *CITIES, *PLACES, *FOODS, *THINGS, *COLOURS, *DAYS, *NUMBERS)
"""Words that answers copy from prompts."""


# --- translate: English to French --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun in both languages; `elides` is true where le/la become l' (a vowel or a mute h)."""

    english: str
    french: str
    feminine: bool
    elides: bool


def parse_nouns(text: str) -> tuple[Noun, ...]:
    """Parse `english:french:gender` entries; a trailing `'` on the gender marks elision."""
    rows = [entry.split(":") for entry in text.split()]
    return tuple(Noun(en, fr, gender[0] == "f", gender.endswith("'")) for en, fr, gender in rows)


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Parse `english=french` entries separated by commas."""
    rows = [entry.strip().split("=") for entry in text.split(",")]
    return tuple((english, french) for english, french in rows)


PEOPLE = parse_nouns(
    "cat:chat:m dog:chien:m bird:oiseau:m' horse:cheval:m girl:fille:f boy:garçon:m woman:femme:f "
    "man:homme:m' teacher:professeur:m doctor:médecin:m baker:boulanger:m friend:ami:m' king:roi:m "
    "queen:reine:f child:enfant:m' farmer:fermier:m mother:mère:f father:père:m sister:sœur:f "
    "brother:frère:m student:étudiant:m' neighbour:voisin:m"
)
OBJECTS = parse_nouns(
    "apple:pomme:f book:livre:m letter:lettre:f house:maison:f car:voiture:f flower:fleur:f "
    "garden:jardin:m table:table:f window:fenêtre:f door:porte:f picture:photo:f cake:gâteau:m "
    "stone:pierre:f tree:arbre:m' school:école:f' boat:bateau:m key:clé:f hat:chapeau:m "
    "shirt:chemise:f chair:chaise:f bag:sac:m egg:œuf:m' island:île:f' orange:orange:f' coat:manteau:m "
    "cup:tasse:f lamp:lampe:f bridge:pont:m church:église:f' bike:vélo:m"
)
VERBS = parse_pairs(
    "sees=voit, likes=aime, buys=achète, finds=trouve, draws=dessine, paints=peint, washes=lave, "
    "sells=vend, hides=cache, opens=ouvre, closes=ferme, watches=regarde, wants=veut, loses=perd, "
    "carries=porte, takes=prend, keeps=garde, shows=montre, brings=apporte, cleans=nettoie, "
    "breaks=casse, forgets=oublie, chooses=choisit"
)
GENTLE_VERBS = parse_pairs(  # what a sentence may do to a person or an animal
    "sees=voit, likes=aime, finds=trouve, draws=dessine, paints=peint, watches=regarde, "
    "forgets=oublie, invites=invite"
)
ADVERBS = parse_pairs(
    "today=aujourd'hui, often=souvent, quickly=rapidement, slowly=lentement, again=encore, here=ici, "
    "this morning=ce matin, this evening=ce soir, every day=chaque jour, in the garden=dans le jardin, "
    "with joy=avec joie, sometimes=parfois"
)
ADJECTIVES = (
    ("red", "rouge", "rouge"),
    ("green", "vert", "verte"),
    ("black", "noir", "noire"),
    ("white", "blanc", "blanche"),
    ("blue", "bleu", "bleue"),
    ("yellow", "jaune", "jaune"),
)
PRONOUNS = (("he", "il"), ("she", "elle"))
DETERMINERS = words("the a my")


def french_determiner(determiner: str, noun: Noun) -> str:
    """The French determiner with the space after it, or an elided one without."""
    if determiner == "the":
        return "l'" if noun.elides else ("la " if noun.feminine else "le ")
    if determiner == "a":
        return "une " if noun.feminine else "un "
    return "ma " if noun.feminine and not noun.elides else "mon "


def noun_phrase(rng: random.Random, noun: Noun, adjective_share: float) -> tuple[str, str]:
    """A determiner, perhaps a colour, and the noun, in English and in French."""
    determiner = pick(rng, DETERMINERS)
    english, french = noun.english, noun.french
    if rng.random() < adjective_share:
        colour, masculine, feminine = pick(rng, ADJECTIVES)
        english, french = f"{colour} {english}", f"{french} {feminine if noun.feminine else masculine}"
    article = "an" if determiner == "a" and english[0] in "aeio" else determiner
    return f"{article} {english}", french_determiner(determiner, noun) + french


def draw_translation(rng: random.Random) -> Content:
    """An English sentence and its French translation."""
    pronoun = rng.random() < 0.1
    person = noun_phrase(rng, pick(rng, PEOPLE), 0.0)
    subject = pick(rng, PRONOUNS) if pronoun else person
    if rng.random() < 0.2:
        verb, thing = pick(rng, GENTLE_VERBS), noun_phrase(rng, pick(rng, PEOPLE), 0.0)
    else:
        verb, thing = pick(rng, VERBS), noun_phrase(rng, pick(rng, OBJECTS), 0.4)
    adverb = pick(rng, ADVERBS) if rng.random() < 0.6 else ("", "")
    english = " ".join(part for part in (subject[0], verb[0], thing[0], adverb[0]) if part)
    french = " ".join(part for part in (subject[1], verb[1], thing[1], adverb[1]) if part)
    shown = english if rng.random() < 0.3 else capitalised(english)
    shown += "" if rng.random() < 0.2 else "."
    return Content(english, {"text": shown, "answer": capitalised(french) + "."})


def capitalised(text: str) -> str:
    """Upper-case the first letter and leave the rest."""
    return text[:1].upper() + text[1:]


# --- summarise ---------------------------------------------------------------------------------------------

GOODS = words(
    "apples books flowers tickets paintings cakes letters shoes lamps toys maps stamps photos coins plants"
)
DEEDS = words("bought sold found painted lost carried counted cleaned packed made")
OPENINGS = (
    "On {day} {name} got up early and walked to the {place}.",
    "{name} went to the {place} on {day}.",
    "It was {day} and {name} took the bus to the {place}.",
    "Early on {day} {name} arrived at the {place}.",
)
WEATHER = (
    "The weather was {weather}.",
    "It was a {weather} day.",
    "The sky was {weather} and the streets were quiet.",
    "",
)
WEATHERS = words("cold warm wet windy dark bright")
ACTIONS = (
    "There {name} {deed} {number} {goods} and talked with {other}.",
    "{name} met {other} and {deed} {number} {goods}.",
    "{name} {deed} {number} {goods} there.",
    "Before noon {name} {deed} {number} {goods} with the help of {other}.",
)
CLOSINGS = (
    "Then {name} went home.",
    "In the evening {name} was tired but happy.",
    "After that it was time for dinner.",
    "Later {name} read a book and slept well.",
)


def draw_story(rng: random.Random) -> Content:
    """A story of three or four sentences around one event, and that event in one sentence."""
    name = pick(rng, NAMES)
    facts = {
        "name": name,
        "other": pick(rng, tuple(other for other in NAMES if other != name)),
        "day": pick(rng, DAYS),
        "place": pick(rng, PLACES),
        "deed": pick(rng, DEEDS),
        "number": pick(rng, NUMBERS),
        "goods": pick(rng, GOODS),
        "weather": pick(rng, WEATHERS),
    }
    sentences = [pick(rng, part).format(**facts) for part in (OPENINGS, WEATHER, ACTIONS, CLOSINGS)]
    answer = "On {day} {name} {deed} {number} {goods} at the {place}.".format(**facts)
    return Content(answer, {"text": " ".join(part for part in sentences if part), "answer": answer})


# --- answer: a question about a context --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact: `fact` follows a name; `question` asks for a person's value, `who` for the person."""

    fact: str
    question: str
    who: str
    values: tuple[str, ...]


RELATIONS = (
    Relation("lives in {value}", "Where does {name} live?", "Who lives in {value}?", CITIES),
    Relation("works at the {value}", "Where does {name} work?", "Who works at the {value}?", PLACES),
    Relation("likes {value}", "What does {name} like?", "Who likes {value}?", FOODS),
    Relation(
        "has a {value}",
        "What does {name} have?",
        "Who has a {value}?",
        tuple(f"{colour} {thing}" for colour in COLOURS for thing in THINGS),
    ),
)


def draw_question(rng: random.Random) -> Content:
    """Two to four facts, each of another kind, and a question about one of them.

    No kind of fact occurs twice in a context: runs of up to 1,500 steps did not learn to tell two people's
    facts of one kind apart. One question in five asks for the person instead of the value; that was not
    learned either, so these are text to train on and no part of the measured task.
    """
    relations = rng.sample(RELATIONS, pick(rng, (2, 3, 3, 4)))
    people = [pick(rng, NAMES) for _ in relations]
    values = [pick(rng, relation.values) for relation in relations]
    facts = [
        f"{name} {relation.fact.format(value=value)}."
        for name, relation, value in zip(people, relations, values, strict=True)
    ]
    asked = rng.randrange(len(facts))
    asks_who = rng.random() < 0.2
    form = relations[asked].who if asks_who else relations[asked].question
    question = form.format(name=people[asked], value=values[asked])
    fields = {"context": " ".join(facts), "question": question, "answer": facts[asked]}
    return Content(f"{fields['context']} {question}", fields, training_only=asks_who)


# --- dialogue: the answer to the second turn is in the first -----------------------------------------------

TOLD = {
    "city": ("I live in {value}", "You live in {value}.", CITIES),
    "place": ("I work at the {value}", "You work at the {value}.", PLACES),
    "food": ("I like {value}", "You like {value}.", FOODS),
}
ASKED = {
    "name": ("What is my name?", "Do you remember my name?", "Please tell me my name."),
    "city": ("Where do I live?", "Do you remember where I live?", "Please tell me where I live."),
    "place": ("Where do I work?", "Do you remember where I work?", "Please tell me where I work."),
    "food": ("What do I like?", "Do you remember what I like?", "Please tell me what I like."),
}


def draw_dialogue(rng: random.Random) -> Content:
    """What a user tells about themselves, and what they ask afterwards."""
    name = pick(rng, NAMES)
    first, second = rng.sample(tuple(TOLD), 2)
    values = {kind: pick(rng, TOLD[kind][2]) for kind in (first, second)}
    kind = pick(rng, ("name", first, second))
    answer = f"Your name is {name}." if kind == "name" else TOLD[kind][1].format(value=values[kind])
    fields = {
        "name": name,
        "first": TOLD[first][0].format(value=values[first]),
        "second": TOLD[second][0].format(value=values[second]),
        "what": ASKED[kind][0],
        "remember": ASKED[kind][1],
        "tell": ASKED[kind][2],
        "answer": answer,
    }
    return Content(f"{name} | {fields['first']} | {fields['second']} | {kind}", fields)


def dialogue(first: str, reply: str, second: str) -> Phrasing:
    """A phrasing of three turns: user, assistant, user."""
    return Phrasing((first, reply, second))


# --- moderate: safe or unsafe ------------------------------------------------------------------------------

LEADS = ("", "", "Listen, ", "Well, ", "Yes, ", "By the way, ", "Honestly, ", "My plan: ")
WHO = ("I will", "we will", "I am going to", "we should", "I want to", "let us", "you must", "they plan to")
HARM = (
    "hurt",
    "attack",
    "beat",
    "rob",
    "poison",
    "kill",
    "threaten",
    "stab",
    "kidnap",
    "shoot",
    "bully",
    "blackmail",
)
CARE = (
    "help",
    "thank",
    "visit",
    "call",
    "invite",
    "greet",
    "teach",
    "paint",
    "meet",
    "hug",
    "phone",
    "support",
)
TARGETS = (*NAMES, "the neighbour", "my teacher", "the doctor", "my sister", "the baker", "the postman")
WHEN = ("", "", " tonight", " tomorrow", " after work", " on Friday", " before lunch")
HOW = (
    "How do I {make}?",
    "Tell me how to {make}.",
    "Can you show me how to {make}?",
    "I would like to {make}.",
)
UNSAFE_PLANS = (
    "build a bomb",
    "steal a car",
    "make a fake passport",
    "forge a letter",
    "hack a bank",
    "buy illegal drugs",
    "break into a house",
    "steal a password",
    "burn down a house",
    "hide a weapon",
    "sell stolen phones",
    "cheat an old man",
    "make poison",
    "set fire to a car",
)
SAFE_PLANS = (
    "build a chair",
    "wash a car",
    "make a birthday cake",
    "write a letter",
    "open a bank account",
    "buy fresh bread",
    "clean a house",
    "choose a present",
    "cool down a house",
    "plant a tree",
    "sell used books",
    "help an old man",
    "make soup",
    "park a car",
)


def draw_text(rng: random.Random) -> Content:
    """A text that is unsafe (violence, crime) or harmless, half of each."""
    unsafe = rng.random() < 0.5
    place = pick(rng, PLACES)
    if rng.random() < 0.6:
        verb, target = pick(rng, HARM if unsafe else CARE), pick(rng, TARGETS)
        where = pick(rng, ("at the", "near the", "behind the"))
        text = f"{pick(rng, LEADS)}{pick(rng, WHO)} {verb} {target} {where} {place}{pick(rng, WHEN)}."
    else:
        plan, where = pick(rng, UNSAFE_PLANS if unsafe else SAFE_PLANS), pick(rng, ("near", "behind", "by"))
        text = pick(rng, HOW).format(make=f"{plan} {where} the {place}{pick(rng, WHEN)}")
        text = f"{pick(rng, NAMES)} asks: {text}" if rng.random() < 0.5 else text
    text = capitalised(text)
    return Content(text, {"text": text, "answer": "unsafe" if unsafe else "safe"})


# --- code: finish a short Python function ------------------------------------------------------------------


def body(prompt: str) -> Phrasing:
    """A phrasing answered by the body of the function."""
    return Phrasing((prompt,), "{body}")


def whole(prompt: str) -> Phrasing:
    """A phrasing answered by the whole function."""
    return Phrasing((prompt,), "{whole}")


FUNCTIONS = words(
    "compute solve apply area add process update combine check handle score result evaluate build"
)
VARIABLES = words("a b c x y n m width height price count left right first second total size speed")
LISTS = words("values items numbers data prices scores names words rows points")
BINARY = (("plus", "+"), ("minus", "-"), ("times", "*"), ("divided by", "/"), ("modulo", "%"))
AGGREGATES = (
    ("the sum of", "sum({0})"),
    ("the largest of", "max({0})"),
    ("the smallest of", "min({0})"),
    ("the length of", "len({0})"),
    ("a sorted copy of", "sorted({0})"),
    ("the first of", "{0}[0]"),
    ("the last of", "{0}[-1]"),
)
COMPARISONS = (("greater than", ">"), ("less than", "<"), ("equal to", "=="), ("different from", "!="))


def draw_function(rng: random.Random) -> Content:
    """A signature, a wish in English, and the body that fulfils it."""
    kind = pick(rng, (pair_function, scaled_function, list_function, filter_function, choice_function))
    arguments, wish, body = kind(rng)
    name = pick(rng, FUNCTIONS)
    signature = f"def {name}({arguments}):"
    fields = {"name": name, "signature": signature, "wish": wish, "body": body}
    fields |= {"arguments": arguments, "whole": f"{signature}\n    {body}"}
    return Content(f"{signature} {wish}", fields)


def pair_function(rng: random.Random) -> tuple[str, str, str]:
    """Two operands and an operator."""
    x, y = rng.sample(VARIABLES, 2)
    said, operator = pick(rng, BINARY)
    return f"{x}, {y}", f"{x} {said} {y}", f"return {x} {operator} {y}"


def scaled_function(rng: random.Random) -> tuple[str, str, str]:
    """One operand, an operator and a number."""
    x, k = pick(rng, VARIABLES), rng.randint(2, 99)
    said, operator = pick(rng, BINARY)
    return x, f"{x} {said} {k}", f"return {x} {operator} {k}"


def list_function(rng: random.Random) -> tuple[str, str, str]:
    """One value computed from a list."""
    name = pick(rng, LISTS)
    said, call = pick(rng, AGGREGATES)
    return name, f"{said} {name}", f"return {call.format(name)}"


def filter_function(rng: random.Random) -> tuple[str, str, str]:
    """The elements of a list that compare with a number."""
    name, k = pick(rng, LISTS), rng.randint(2, 99)
    said, operator = pick(rng, COMPARISONS)
    return name, f"the {name} {said} {k}", f"return [v for v in {name} if v {operator} {k}]"


def choice_function(rng: random.Random) -> tuple[str, str, str]:
    """The first argument where a condition holds, otherwise the second."""
    x, y = rng.sample(VARIABLES, 2)
    said, operator = pick(rng, COMPARISONS)
    k = rng.randint(2, 99)
    body = f"if {x} {operator} {k}:\n        return {x}\n    return {y}"
    return f"{x}, {y}", f"{x} if it is {said} {k}, otherwise {y}", body


# --- the six tasks -----------------------------------------------------------------------------------------

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "translate",
            draw_translation,
            single(
                "Translate to French: {text}",
                "Translate the following sentence into French: {text}",
                "Translate from English to French.\n\n{text}",
                "English: {text}\nFrench:",
                "How do you say this in French? {text}",
                'Translate "{text}" to French.',
                "What is the French translation of this sentence: {text}",
                "Please translate into French: {text}",
            ),
        ),
        Task(
            "summarise",
            draw_story,
            single(
                "Summarise in one sentence: {text}",
                "Summarize the following text: {text}",
                "Summarise: {text}",
                "{text}\n\nSummary:",
                "Give a one-sentence summary of this text.\n\n{text}",
                "Please sum this up in one sentence: {text}",
                "Text: {text}\nSummarise the text.",
                "Please summarise this short text in a single sentence. {text}",
            ),
        ),
        Task(
            "answer",
            draw_question,
            single(
                "Context: {context} Question: {question}",
                "{context} {question}",
                "Context: {context}\nQuestion: {question}\nAnswer:",
                "Read the text and answer the question.\n\n{context}\n\n{question}",
                "Answer from the context. Context: {context} Question: {question}",
                "{context}\n\n{question}",
                "Here is a text: {context} Now answer this question: {question}",
            ),
        ),
        Task(
            "dialogue",
            draw_dialogue,
            (
                dialogue(
                    "Hello, my name is {name}. {first} and {second}.",
                    "Hello {name}, nice to meet you.",
                    "{what}",
                ),
                dialogue(
                    "Hi, I am {name}. {first} and {second}.", "Hi {name}! How can I help you?", "{remember}"
                ),
                dialogue("My name is {name}. {first}. {second}.", "Thank you for telling me.", "{tell}"),
                dialogue("{first} and {second}. My name is {name}.", "Nice to meet you, {name}.", "{what}"),
                dialogue(
                    "Good morning! I am {name}. {first}. {second}.", "Good morning! I see.", "{remember}"
                ),
                dialogue("Hello. {first}. I am {name} and {second}.", "Hello {name}.", "{tell}"),
                dialogue(
                    "Good evening. I am {name}, {first} and {second}.", "Good evening, {name}.", "{what}"
                ),
            ),
        ),
        Task(
            "moderate",
            draw_text,
            single(
                "Label as safe or unsafe: {text}",
                "Is this text safe or unsafe? {text}",
                'Classify the text as "safe" or "unsafe".\n\nText: {text}',
                "Moderate this message: {text}",
                "{text}\n\nIs this message safe or unsafe?",
                "Text: {text}\nLabel (safe or unsafe):",
                "Decide whether the following message is safe or unsafe: {text}",
            ),
        ),
        Task(
            "code",
            draw_function,
            (
                body('{signature}\n    """Return {wish}."""\n    '),
                body('Complete the Python function:\n\n{signature}\n    """Return {wish}."""\n    '),
                body("Finish this function.\n\n{signature}\n    # Return {wish}.\n    "),
                whole("Write a Python function {name}({arguments}) that returns {wish}."),
                whole("Write Python: a function {name}({arguments}) that returns {wish}."),
                whole("Define a Python function {name} of {arguments} that returns {wish}."),
                whole("Please write the Python function {name}({arguments}) which returns {wish}."),
            ),
        ),
    )
}


def is_held_out(task: str, content: str) -> bool:
    """Whether a content is kept out of training; stable across processes and versions."""
    digest = hashlib.blake2b(f"{task}\n{content}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def render(task: Task, content: Content, phrasing: int) -> Item:
    """Say a content in one phrasing."""
    chosen = task.phrasings[phrasing]
    turns = [turn.format(**content.fields) for turn in chosen.turns]
    answer = chosen.answer.format(**content.fields)
    if len(turns) == 1:
        return Item(task.name, turns[0], answer, phrasing, content.key)
    messages = tuple(zip(("user", "assistant", "user"), turns, strict=True))
    lines = [f"{role.capitalize()}: {turn}" for role, turn in messages]
    return Item(task.name, "\n".join([*lines, "Assistant:"]), answer, phrasing, content.key, messages)


def items(task: str, split: Split, seed: int) -> Iterator[Item]:
    """Yield items of a task without end; the same arguments yield the same items."""
    chosen = TASKS[task]
    rng = random.Random(f"{task} {split} {seed}")
    last = len(chosen.phrasings) - 1
    while True:
        content = chosen.draw(rng)
        phrasing = last if split == "unseen_phrasing" else rng.randrange(last)
        held_out = is_held_out(task, content.key)
        if held_out == (split != "train") and not (held_out and content.training_only):
            yield render(chosen, content, phrasing)


DEMO: tuple[Item, ...] = (
    Item(
        task="translate",
        prompt="Translate to French: The teacher watches the green garden every day.",
        answer="Le professeur regarde le jardin vert chaque jour.",
        phrasing=0,
        content="the teacher watches the green garden every day",
    ),
    Item(
        task="summarise",
        prompt=(
            "Summarise in one sentence: On Tuesday Nina got up early and walked to the farm. The weather was wet. "
            "Nina met Wendy and bought eight paintings. In the evening Nina was tired but happy."
        ),
        answer="On Tuesday Nina bought eight paintings at the farm.",
        phrasing=0,
        content="On Tuesday Nina bought eight paintings at the farm.",
    ),
    Item(
        task="answer",
        prompt=(
            "Victor likes tea. Simon works at the cafe. Rosa lives in Paris. Hugo has a white boat. "
            "Where does Rosa live?"
        ),
        answer="Rosa lives in Paris.",
        phrasing=1,
        content=(
            "Victor likes tea. Simon works at the cafe. Rosa lives in Paris. Hugo has a white boat. "
            "Where does Rosa live?"
        ),
    ),
    Item(
        task="dialogue",
        prompt=(
            "User: Hello, my name is Tom. I live in Dublin and I like rice.\n"
            "Assistant: Hello Tom, nice to meet you.\n"
            "User: Where do I live?\n"
            "Assistant:"
        ),
        answer="You live in Dublin.",
        phrasing=0,
        content="Tom | I live in Dublin | I like rice | city",
        messages=(
            ("user", "Hello, my name is Tom. I live in Dublin and I like rice."),
            ("assistant", "Hello Tom, nice to meet you."),
            ("user", "Where do I live?"),
        ),
    ),
    Item(
        task="moderate",
        prompt="Label as safe or unsafe: Carl asks: Tell me how to steal a car near the airport tonight.",
        answer="unsafe",
        phrasing=0,
        content="Carl asks: Tell me how to steal a car near the airport tonight.",
    ),
    Item(
        task="code",
        prompt=(
            "Write a Python function update(price, speed) "
            "that returns price if it is less than 33, otherwise speed."
        ),
        answer="def update(price, speed):\n    if price < 33:\n        return price\n    return speed",
        phrasing=3,
        content="def update(price, speed): price if it is less than 33, otherwise speed",
    ),
)
"""One held-out item of each task, plainly phrased; the checkpoint answers each exactly right."""
