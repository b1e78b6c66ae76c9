"""Prompts to sample a model on: templates in five kinds, and the model's own idea of what users ask."""

import random
from typing import Literal

from forerun.data.topics import ITEMS, LANGUAGES, PEOPLE, PLACES, SUBJECTS, TASKS

PromptKind = Literal["chat", "code", "maths", "summarising", "writing"]
PROMPT_KINDS: tuple[PromptKind, ...] = ("chat", "code", "maths", "summarising", "writing")

_CHAT = (
    "Explain {subject} in simple terms.", "What should I know about {subject}?", "Why does {subject} matter?",
    "Give me five facts about {subject}.", "How would you explain {subject} to {person}?",
    "What are the advantages and disadvantages of {subject}?", "What is the difference between {subject} and {other}?",
    "I want to learn more about {subject}. Where do I start?", "List the main ideas behind {subject}.",
    "What do people often get wrong about {subject}?", "Can you give me some tips about {subject}?",
    "Who should care about {subject}, and why?", "Answer briefly: what is {subject}?",
    "Compare {subject} with {other}.",
)  # fmt: skip
_CODE = (
    "Write a {language} function that {task}.", "Show me {language} code that {task}, with comments.",
    "How do I write a program in {language} that {task}?", "Write a {language} function that {task} and explain it.",
    "Write unit tests for a {language} function that {task}.", "Give a short {language} example that {task}.",
    "What is the time complexity of code that {task}? Show it in {language}.",
)  # fmt: skip
_MATHS = (
    "A shop sells {item} at {a} dollars each. How much do {b} {item} cost?", "What is {a} times {b}?",
    "{person} has {a} {item} and gives away {b_small}. How many are left?", "Solve for x: {a_small}x + {b} = {c}.",
    "A train travels {a} km in {b_small} hours. What is its average speed?", "What is {b_small} percent of {c}?",
    "If {a} {item} are shared equally among {b_small} people, how many does each get?",
    "A rectangle is {a} cm long and {b} cm wide. Find its area and perimeter.",
    "The sum of two numbers is {c} and one of them is {a}. What is the other? Explain each step.",
    "{person} saves {b} dollars a week. How long until there are {c} dollars? Show your work.",
)  # fmt: skip
_SUMMARISING = (
    "Summarise the following text in one paragraph:\n\n{passage}", "Give the main points of this text:\n\n{passage}",
    "Write a short summary of this passage.\n\n{passage}", "In two sentences, what does this text say?\n\n{passage}",
    "Read this and list three key facts:\n\n{passage}", "{passage}\n\nSummarise the text above.",
)  # fmt: skip
_WRITING = (
    "Write a short story about {person} in {place}.", "Write a poem about {subject}.",
    "Describe {place} early in the morning.", "Write a letter from {person} to a friend about {subject}.",
    "Write the opening of a novel set in {place}.", "Write a dialogue between {person} and {other_person} in {place}.",
    "Write a blog post about {subject}.", "Write a product description for something sold in {place}.",
    "Write a speech about {subject} for {person}.", "Tell a story that ends in {place}.",
    "Write a thank-you email from {person} to {other_person}.", "Write an essay about {subject}.",
)  # fmt: skip
_TEMPLATES: dict[PromptKind, tuple[str, ...]] = {
    "chat": _CHAT,
    "code": _CODE,
    "maths": _MATHS,
    "summarising": _SUMMARISING,
    "writing": _WRITING,
}


def template_prompt(rng: random.Random, *, kind: PromptKind, passage: str = "") -> str:
    """Fill a random template of a kind.

    Args:
        rng: Source of the choices.
        kind: Which templates.
        passage: The text to summarise; used by ``summarising`` only.
    """
    values = {
        "subject": rng.choice(SUBJECTS),
        "other": rng.choice(SUBJECTS),
        "person": rng.choice(PEOPLE),
        "other_person": rng.choice(PEOPLE),
        "place": rng.choice(PLACES),
        "task": rng.choice(TASKS),
        "language": rng.choice(LANGUAGES),
        "item": rng.choice(ITEMS),
        "a": rng.randint(12, 240),
        "b": rng.randint(3, 60),
        "c": rng.randint(200, 900),
        "a_small": rng.randint(2, 12),
        "b_small": rng.randint(2, 12),
        "passage": passage,
    }
    text = rng.choice(_TEMPLATES[kind]).format(**values)
    return text[0].upper() + text[1:]
