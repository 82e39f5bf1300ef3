"""What a training run will be, settled before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from studfinder.attention import Variant
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records.config import identity, makes
from studfinder.records.presented import Presented
from studfinder.runs import process_count
from studfinder.texts import check_ids, documents, fingerprint, token_ids, tokenizer_of
from studfinder.training import (
    ModelShape,
    Preset,
    ToyTask,
    TrainingRecipe,
    build_model,
    preset,
    put_in,
    task_from,
    variants_from,
)
from studfinder.training.apart import keeps_apart
from studfinder.training.estimate import Estimate, estimate, estimate_of, faster_precision
from studfinder.training.trainable import check_trainable, dequantized_model, trainable_note
from studfinder.verbs.configs import TrainConfig
from studfinder.verbs.load import load_as

TASK_PRESET = Preset(shape=ModelShape(), recipe=TrainingRecipe(), length=0, vocabulary=None)
"""A small model for toy tasks: two layers of width 64."""
GO_ON = Preset(
    shape=ModelShape(),
    recipe=TrainingRecipe(steps=2000, batch=8, lr=5e-5, schedule="cosine"),
    length=512,
    vocabulary=None,
)
"""The recipe for a trained model, whose shape is its own."""

_LOOKED_AT = 100_000
"""Characters of a text whose tokens are looked at before a run begins."""


@dataclass(frozen=True)
class TrainPlan(Presented):
    """Everything that determines a training run, worked out before it starts.

    Attributes:
        name: of the model, for the folder.
        config: what was asked for.
        shape: of a model from scratch; None of a trained one.
        variants: of attention, put in one after the other.
        task: what it is trained on, if not a text.
        source: what the text is called, with where it comes from.
        length, vocabulary: of a sequence, and of the tokenizer made in place (None: bytes).
        estimate: what it will take.
        notes: what was settled otherwise than the preset says, in sentences.
        settings: all of the above, flat.
    """

    name: str
    config: TrainConfig
    recipe: TrainingRecipe
    variants: tuple[Variant, ...]
    length: int
    shape: ModelShape | None = None
    task: ToyTask | None = None
    source: str = ""
    vocabulary: int | None = None
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text_tokens(self) -> int:
        """Tokens of the text that are made, at most (of each, if there are several)."""
        if self.config.text is None:
            return 0
        return self.recipe.text_tokens(self.length)


@makes(TrainConfig)
def plan_train(config: TrainConfig) -> TrainPlan:
    """Settle a run.

    Raises:
        StudfinderError: an unknown name, settings that do not fit, no text.
    """
    if config.preset and config.task is None and config.text is None:
        own = preset(config.preset)
        config = replace(config, text=own.text, test_text=config.test_text or own.test_text)
    base, text, length, vocabulary = config.base, config.text, config.length, config.vocabulary
    task = task_from(config.task) if isinstance(config.task, str) else config.task
    if (task is None) == (text is None):
        raise StudfinderError(
            "nothing to train on" if text is None else "both a task and a text to train on",
            expected="one of the two: --task (e.g. induction, recall) or --text (a file, a folder or a name)",
        )
    default = GO_ON if base else TASK_PRESET if task is not None else preset("toy")
    chosen = preset(config.preset) if config.preset else default
    if text is not None:
        config = replace(config, repeat=config.repeat or chosen.repeat or None)
    if config.dequantize and not base:
        raise StudfinderError("nothing to dequantise", expected="a trained model", do="Say --from MODEL")
    lm = base_model(config) if base else None
    shape, recipe = (_given(config, kind) for kind in (ModelShape, TrainingRecipe))
    sizes = replace(chosen.shape, **shape)
    course, notes = _warmed_up(replace(chosen.recipe, **recipe), "warmup" in recipe)
    if course.precision == "auto":
        width = sizes.hidden if lm is None else lm.anatomy.hidden
        course = replace(course, precision=faster_precision(width))  # type: ignore[arg-type]
    words = tuple(chosen.attention if config.attention is None else config.attention)
    plan = TrainPlan(
        name=base or config.preset or (task.name if task is not None else "toy"),
        config=config,
        recipe=course,
        variants=tuple(variants_from(words)),
        length=task.length if task is not None else length or _window(chosen, lm),
        shape=None if base else sizes,
        task=task,
        vocabulary=None if base else vocabulary or chosen.vocabulary,
        notes=notes,
    )
    plan = replace(plan, source=_checked(plan, lm, shape))
    if lm is not None:
        kept = (f"{base} is dequantised: a full model is trained and written",) if config.dequantize else ()
        plan = replace(plan, notes=(*notes, *kept, trainable_note(lm)))
    return replace(plan, estimate=_estimate(plan, lm), settings=_settings(plan, words))


def _given(config: TrainConfig, kind: type) -> dict[str, Any]:
    """What a config says of a shape or a recipe."""
    values = {one.name: getattr(config, one.name) for one in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def base_model(config: TrainConfig, dtype: str = "auto") -> LM:
    """The trained model to go on with. Raises StudfinderError if it cannot be loaded, or dequantised as asked."""
    lm = load_as(config.base, config, dtype=dtype)
    return dequantized_model(lm) if config.dequantize else lm


def _warmed_up(course: TrainingRecipe, asked: bool) -> tuple[TrainingRecipe, tuple[str, ...]]:
    """The recipe with a warm-up that leaves something to train: a preset's is at most half of the run."""
    most = course.steps // 2
    if course.warmup <= most:
        return course, ()
    if not asked:
        note = f"warm-up of {most:,} steps, half of the run, instead of the preset's {course.warmup:,}"
        return replace(course, warmup=most), (note,)
    if course.warmup >= course.steps:
        raise StudfinderError(
            f"a warm-up of {course.warmup:,} steps in a run of {course.steps:,}",
            expected="fewer, or the learning rate never gets where it should",
        )
    return course, ()


def _window(chosen: Preset, lm: LM | None) -> int:
    """Tokens of a window where nobody said: the preset's, or as many of them as a trained model takes."""
    if chosen is GO_ON and lm is not None and lm.anatomy.max_positions is not None:
        return min(chosen.length, lm.anatomy.max_positions)
    return chosen.length


def _checked(plan: TrainPlan, lm: LM | None, shape: Any) -> str:
    """What the text is called. Raises StudfinderError for what does not fit, and where there is no text."""
    asked = plan.config
    if asked.base and (shape or asked.vocabulary):
        raise StudfinderError(
            f"the sizes of {plan.config.base} are what they are", do="Leave layers, width and vocabulary out"
        )
    if plan.task is not None and (asked.length or asked.vocabulary):
        raise StudfinderError(
            "a task has its own length and vocabulary", do=f"Say --task {plan.task.name}:length=...,vocabulary=..."
        )
    if plan.task is not None and (asked.test_text or asked.repeat):
        raise StudfinderError("a task makes its own sequences", do="Leave --test-text and --repeat out")
    if plan.config.base and plan.task is not None:
        raise StudfinderError("a toy task has token ids of its own", expected="a model from scratch, or a text")
    if lm is not None:
        check_trainable(lm, plan.length, dequantised=plan.config.dequantize)
    if plan.config.apart:
        _check_apart(plan)
    plan.recipe.micro_batch(process_count())
    if asked.text is None:
        return ""
    source, found = documents(asked.text)
    first = next(found)  # said before anything is made for nothing
    if lm is not None:
        ids = token_ids(tokenizer_of(lm), [first[:_LOOKED_AT]], special=False)
        check_ids(lm, ids, f"the tokens of {asked.text!r}")
    if asked.test_text is not None:
        next(documents(asked.test_text)[1])
    return source


def _check_apart(plan: TrainPlan) -> None:
    if plan.task is not None:
        raise StudfinderError("a task has no documents to keep apart", do="Leave --apart out")
    if plan.config.base is not None:
        model, what = base_model(plan.config, "float32").model, plan.config.base
        model = put_in(model, plan.variants, trained=True)
    else:
        assert plan.shape is not None
        what = f"a model of architecture {plan.shape.architecture}"
        tiny = ModelShape(architecture=plan.shape.architecture, layers=2, hidden=16, heads=2)
        model = build_model(tiny, plan.variants, vocabulary=257, length=plan.length, seed=0)
    if not keeps_apart(model):
        raise StudfinderError(
            f"{what} does not keep packed documents apart: its attention does not see where one begins",
            expected="an architecture whose mask follows the positions, e.g. llama",
            do="Leave --apart out",
        )


def _estimate(plan: TrainPlan, lm: LM | None) -> Estimate:
    if lm is not None:
        parameters = sum(parameter.numel() for parameter in lm.model.parameters())
        layers, hidden, vocabulary = len(lm.anatomy.layers), lm.anatomy.hidden, lm.anatomy.vocabulary
        devices, kept = process_count(), plan.text_tokens
        return estimate_of(parameters, layers, hidden, plan.recipe, vocabulary, plan.length, devices, kept)
    assert plan.shape is not None
    vocabulary = plan.task.vocabulary if plan.task is not None else plan.vocabulary or 257
    return estimate(
        plan.shape,
        plan.variants,
        plan.recipe,
        vocabulary=vocabulary,
        length=plan.length,
        devices=process_count(),
        kept=plan.text_tokens,
    )


def _settings(plan: TrainPlan, attention: Sequence[str]) -> dict[str, Any]:
    data: dict[str, Any] = (
        plan.task.to_dict()
        if plan.task is not None
        else {"text": plan.config.text, "text_print": fingerprint(plan.config.text or "")}
    )
    if plan.config.test_text is not None:
        data |= {"test_text": plan.config.test_text, "test_text_print": fingerprint(plan.config.test_text)}
    if plan.config.repeat:
        data["repeat"] = plan.config.repeat
    model: dict[str, Any] = {"base": plan.config.base} if plan.shape is None else identity(plan.shape)
    if plan.config.dequantize:
        model["dequantize"] = True
    return {
        **{f"data_{name}": value for name, value in data.items()},
        "length": plan.length,
        "vocabulary": plan.vocabulary,
        "apart": plan.config.apart,
        **{f"model_{name}": value for name, value in model.items()},
        "attention": " ".join(attention),
        **identity(plan.recipe),
    }
