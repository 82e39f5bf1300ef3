"""What a training run will be, settled before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from studfinder.attention import Variant
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.runs import process_count
from studfinder.texts import check_ids, token_ids, tokenizer_of
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
from studfinder.training.documents import documents, fingerprint
from studfinder.training.estimate import Estimate, estimate, estimate_of, faster_precision
from studfinder.training.trainable import check_trainable, dequantized_model, trainable_note

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
class TrainPlan:
    """Everything that determines a training run, worked out before it starts.

    Attributes:
        name: of the model, for the folder.
        shape: of a model from scratch; None with `base`.
        base: a trained model to go on with.
        variants: of attention, put in one after the other.
        task, text: what it is trained on; one of the two.
        length, vocabulary: of a sequence, and of the tokenizer made in place (None: bytes).
        apart: keep packed documents from seeing each other.
        dequantize: train a dequantised copy of `base`.
        estimate: what it will take.
        notes: what was settled otherwise than the preset says, in sentences.
        settings: all of the above, flat.
    """

    name: str
    recipe: TrainingRecipe
    variants: tuple[Variant, ...]
    length: int
    shape: ModelShape | None = None
    base: str | None = None
    task: ToyTask | None = None
    text: str | None = None
    vocabulary: int | None = None
    apart: bool = False
    dequantize: bool = False
    estimate: Estimate | None = None
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text_tokens(self) -> int:
        """Tokens of the text that are made, at most: what the run will see, and a twentieth to test on."""
        if self.text is None:
            return 0
        return int(self.recipe.steps * self.recipe.batch * self.length * 1.06) + 2 * self.length


def plan_train(
    *,
    task: ToyTask | str | None = None,
    text: str | None = None,
    base: str | None = None,
    preset_name: str | None = None,
    attention: Sequence[str] | None = None,
    shape: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    length: int | None = None,
    vocabulary: int | None = None,
    apart: bool = False,
    dequantize: bool = False,
) -> TrainPlan:
    """Settle a run.

    Args:
        task: a toy task, or its name and settings ("induction:length=64").
        text: a text, see `training.documents.documents`. One of task and text.
        base: a trained model to go on with, by name or folder; its tokenizer and sizes are kept.
        preset_name: one of `PRESETS`; the default is "toy" for text from scratch, and for a trained model 2,000
            gentle steps of 8 windows of 512 tokens.
        attention: variants by name, e.g. ["kv_shift", "gated:kind=linear"]; None is the preset's, [] is none.
        shape, recipe: fields of `ModelShape` and `TrainingRecipe` that differ from the preset's.
        length, vocabulary: of windows of text and of the tokenizer, if not the preset's.
        apart: keep packed documents from seeing each other; refused where the architecture cannot.
        dequantize: train a dequantised copy of a quantised `base`, which is refused otherwise.

    Raises:
        StudfinderError: an unknown name, settings that do not fit, no text.
    """
    task = task_from(task) if isinstance(task, str) else task
    if (task is None) == (text is None):
        raise StudfinderError(
            "nothing to train on" if text is None else "both a task and a text to train on",
            expected="one of the two: --task (e.g. induction, recall) or --text (a file, a folder or a name)",
        )
    default = GO_ON if base else TASK_PRESET if task is not None else preset("toy")
    chosen = preset(preset_name) if preset_name else default
    if dequantize and not base:
        raise StudfinderError("nothing to dequantise", expected="a trained model", do="Say --from MODEL")
    lm = base_model(base, dequantize) if base else None
    sizes = replace(chosen.shape, **(shape or {}))
    course, notes = _warmed_up(replace(chosen.recipe, **(recipe or {})), "warmup" in (recipe or {}))
    if course.precision == "auto":
        width = sizes.hidden if lm is None else lm.anatomy.hidden
        course = replace(course, precision=faster_precision(width))  # type: ignore[arg-type]
    words = tuple(chosen.attention if attention is None else attention)
    plan = TrainPlan(
        name=base or preset_name or (task.name if task is not None else "toy"),
        recipe=course,
        variants=tuple(variants_from(words)),
        length=task.length if task is not None else length or _window(chosen, lm),
        shape=None if base else sizes,
        base=base,
        task=task,
        text=text,
        vocabulary=None if base else vocabulary or chosen.vocabulary,
        apart=apart,
        dequantize=dequantize,
        notes=notes,
    )
    _check(plan, lm, shape, length, vocabulary)
    if lm is not None:
        kept = (f"{base} is dequantised: a full model is trained and written",) if dequantize else ()
        plan = replace(plan, notes=(*notes, *kept, trainable_note(lm)))
    return replace(plan, estimate=_estimate(plan, lm), settings=_settings(plan, words))


def base_model(base: str, dequantize: bool, dtype: str = "auto") -> LM:
    """The trained model to go on with. Raises StudfinderError if it cannot be loaded, or dequantised as asked."""
    lm = load(base, dtype=dtype)
    return dequantized_model(lm) if dequantize else lm


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


def _check(plan: TrainPlan, lm: LM | None, shape: Any, length: int | None, vocabulary: int | None) -> None:
    if plan.base and (shape or vocabulary):
        raise StudfinderError(
            f"the sizes of {plan.base} are what they are", do="Leave layers, width and vocabulary out"
        )
    if plan.task is not None and (length or vocabulary):
        raise StudfinderError(
            "a task has its own length and vocabulary", do=f"Say --task {plan.task.name}:length=...,vocabulary=..."
        )
    if plan.base and plan.task is not None:
        raise StudfinderError("a toy task has token ids of its own", expected="a model from scratch, or a text")
    if lm is not None:
        check_trainable(lm, plan.length, dequantised=plan.dequantize)
    if plan.apart:
        _check_apart(plan)
    plan.recipe.micro_batch(process_count())
    if plan.text is not None:
        first = next(documents(plan.text))  # said before anything is made for nothing
        if lm is not None:
            ids = token_ids(tokenizer_of(lm), [first[:_LOOKED_AT]], special=False)
            check_ids(lm, ids, f"the tokens of {plan.text!r}")


def _check_apart(plan: TrainPlan) -> None:
    if plan.task is not None:
        raise StudfinderError("a task has no documents to keep apart", do="Leave --apart out")
    if plan.base is not None:
        model, what = base_model(plan.base, plan.dequantize, "float32").model, plan.base
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
    data = plan.task.to_dict() if plan.task is not None else {"text": plan.text, "text_print": fingerprint(plan.text)}
    model: dict[str, Any] = {"base": plan.base} if plan.shape is None else plan.shape.to_dict()
    if plan.dequantize:
        model["dequantize"] = True
    return {
        **{f"data_{name}": value for name, value in data.items()},
        "length": plan.length,
        "vocabulary": plan.vocabulary,
        "apart": plan.apart,
        **{f"model_{name}": value for name, value in model.items()},
        "attention": " ".join(attention),
        **plan.recipe.to_dict(),
    }
