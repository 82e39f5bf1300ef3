"""A line of a local file as a document with the field names that the hub's data set has, which lm-eval's prompts use.

A file that has the hub's own field names needs no function here.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

_REVIEW_WORDS = 60
"""The last words of a review: there reviewers say what they think, and a whole one would be 900 tokens."""


def piqa(row: Row) -> Row:
    """question, choices, label -> goal, sol1, sol2, label"""
    first, second = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["label"]}


def arc(row: Row) -> Row:
    """question, choices, label -> question, choices (text, label), answerKey"""
    return {"question": row["question"], **_lettered(row)}


def openbookqa(row: Row) -> Row:
    """question, choices, label -> question_stem, choices (text, label), answerKey"""
    return {"question_stem": row["question"], **_lettered(row)}


def winogrande(row: Row) -> Row:
    """question, choices, label -> sentence, option1, option2, answer ("1" or "2")"""
    first, second = row["choices"]
    return {"sentence": row["question"], "option1": first, "option2": second, "answer": str(row["label"] + 1)}


def aqua(row: Row) -> Row:
    """question, choices, label -> query, choices, gold, written as AGIEval writes them"""
    choices = [f"({letter}){text}" for letter, text in zip("ABCDE", row["choices"], strict=True)]
    query = f"Q: {row['question']} Answer Choices: {' '.join(choices)}\nA: Among A through E, the answer is"
    return {"query": query, "choices": choices, "gold": [row["label"]]}


def boolq_without_passage(row: Row) -> Row:
    """passage_question or question, label -> question without its question mark, label (1 is yes)"""
    question = row.get("passage_question") or row["question"]
    return {"question": question.strip().rstrip("?").rstrip(), "label": int(row["label"])}


def review(row: Row) -> Row:
    """text, label (1 is positive) -> the last 60 words as review, label"""
    label = row["label"]
    positive = label in (1, "1", "pos", "positive", True)
    return {"review": " ".join(row["text"].split()[-_REVIEW_WORDS:]), "label": int(positive)}


def _lettered(row: Row) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {"choices": {"text": row["choices"], "label": letters}, "answerKey": letters[row["label"]]}
