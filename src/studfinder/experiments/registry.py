"""Every experiment by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from studfinder.errors import unknown

EXPERIMENTS: dict[str, str] = {
    "super-weight/ablation": "studfinder.experiments.super_weight_ablation",
    "super-weight/coordinates": "studfinder.experiments.super_weight_coordinates",
    "super-weight/stopwords": "studfinder.experiments.super_weight_stopwords",
    "super-weight/scaling": "studfinder.experiments.super_weight_scaling",
    "super-weight/case": "studfinder.experiments.super_weight_case",
    "super-weight/anatomy": "studfinder.experiments.super_weight_anatomy",
    "super-weight/block-size": "studfinder.experiments.super_weight_block_size",
    "super-weight/activation-quantization": "studfinder.experiments.super_weight_activation_quantization",
    "super-weight/census": "studfinder.experiments.super_weight_census",
    "super-weight/census-keep": "studfinder.experiments.super_weight_census_keep",
    "super-weight/positions": "studfinder.experiments.super_weight_positions",
    "massive-activations/where": "studfinder.experiments.massive_activations_where",
    "massive-activations/zero-or-mean": "studfinder.experiments.massive_activations_zero_or_mean",
    "massive-activations/no-op-heads": "studfinder.experiments.massive_activations_no_op_heads",
    "massive-activations/heads": "studfinder.experiments.massive_activations_heads",
    "quantize/pareto": "studfinder.experiments.quantize_pareto",
    "quantize/kv-cache": "studfinder.experiments.quantize_kv_cache",
    "quantize/which-layer": "studfinder.experiments.quantize_which_layer",
    "quantize/formats": "studfinder.experiments.quantize_formats",
    "quantize/transforms": "studfinder.experiments.quantize_transforms",
    "plan/scores": "studfinder.experiments.plan_scores",
    "plan/additivity": "studfinder.experiments.plan_additivity",
    "massive-values/map": "studfinder.experiments.massive_values_map",
    "massive-values/layers": "studfinder.experiments.massive_values_layers",
    "massive-values/rope": "studfinder.experiments.massive_values_rope",
    "massive-values/disrupt": "studfinder.experiments.massive_values_disrupt",
    "massive-values/quantization": "studfinder.experiments.massive_values_quantization",
    "massive-values/keep": "studfinder.experiments.massive_values_keep",
    "massive-values/constant-or-deviation": "studfinder.experiments.massive_values_constant",
    "kv-shift/induction": "studfinder.experiments.kv_shift_induction",
    "kv-shift/n-gram": "studfinder.experiments.kv_shift_ngram",
    "kv-shift/hop-k": "studfinder.experiments.kv_shift_hop",
    "kv-shift/theory": "studfinder.experiments.kv_shift_theory",
    "kv-shift/ablations": "studfinder.experiments.kv_shift_ablations",
    "kv-shift/pretrain": "studfinder.experiments.kv_shift_pretrain",
    "outlier-free/pretrain": "studfinder.experiments.outlier_free_pretrain",
    "outlier-free/vehicle": "studfinder.experiments.outlier_free_vehicle",
    "outlier-free/finetune": "studfinder.experiments.outlier_free_finetune",
    "massive-values/rope-control": "studfinder.experiments.rope_control",
    "outlier-free/backcopy": "studfinder.experiments.outlier_free_backcopy",
}
"""The module of each experiment; see `studies.experiment` for what it holds."""


def experiment_named(name: str) -> Any:
    """The module of an experiment. Raises StudfinderError if there is none of this name."""
    if name not in EXPERIMENTS:
        raise unknown("there is no experiment", name, EXPERIMENTS)
    return import_module(EXPERIMENTS[name])
