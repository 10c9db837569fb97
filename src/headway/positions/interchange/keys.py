"""Which keys of a configuration concern position: one that does and was not read is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from headway.positions.interchange.values import Values, names
from headway.shapes import HeadwayError

HARMLESS = frozenset(
    names(
        "_sliding_window_pattern mlp_layer_types mtp_layer_types mtp_mlp_layer_types mtp_layers_block_type "
        "num_sliding_attention_heads swa_head_dim swa_num_attention_heads swa_num_key_value_heads "
        "qk_nope_head_dim keep_window_size norm_rel_ebd position_id_per_seconds layer_type "
        "dropout_positions positional_dropout max_trained_positions max_source_positions max_target_positions "
        "swa_v_head_dim add_swa_attention_sink_bias mtp_local_layer_ids mtp_hybrid_override_pattern"
    )
)
"""Keys that sound like position but do not affect the positions of tokens."""
LENGTHS = frozenset(names("max_position_embeddings n_positions original_max_position_embeddings"))
"""The length a model is made for: most methods do not depend on it."""
MASKS = frozenset(
    names(
        "sliding_window sliding_window_size window_size attention_chunk_size local_attention attention_types "
        "attention_layers attention_type local_radius use_sliding_window use_bidirectional_attention"
    )
)
"""Keys about masks, not positions."""
PATTERNS = frozenset(
    names(
        "sliding_window_pattern global_attn_every_n_layers max_window_layers no_rope_layer_interval "
        "full_attention_interval full_attn_idxs attn_layer_indices attn_layer_offset attn_layer_period "
        "local_layer_ids prefix_dense_sliding_window_pattern hybrid_override_pattern hybrid_layer_pattern"
    )
)
"""Keys that determine the types of layers; irrelevant if each layer's type is listed."""
LISTS = names("layer_types layers_block_type no_rope_layers layer_rope_theta")
ROTATIONS = frozenset(
    names(
        "rope_theta rope_parameters rope_scaling rotary_emb_base rotary_base partial_rotary_factor rotary_pct "
        "rotary_emb_fraction rotary_emb_interleaved rotary_dim"
    )
)
"""Keys that are present whether or not a family rotates, which another key decides."""
READ = (
    LENGTHS
    | MASKS
    | PATTERNS
    | ROTATIONS
    | frozenset(LISTS)
    | frozenset(
        names(
            "alibi attn_config attn_scale attn_temperature_tuning attn_type clamp_len cross_attention_layers "
            "d_rel encoder_attention_type floor_scale global_rope_theta learned_pos_emb local_rope_theta "
            "log_scaling_alpha log_scaling_n_floor max_relative_positions pos_att_type position_biased_input "
            "position_buckets position_embedding_type position_embeddings_type pretrained_window_sizes "
            "qk_rope_head_dim rel_extent relative_attention relative_attention_max_distance "
            "relative_attention_num_buckets rope_interleave rope_local_base_freq rope_pct rotary_embedding_base "
            "sinusoidal_pos_embds swa_rope_theta theta use_absolute_embeddings"
        )
    )
)
"""Keys that are read in some families; in others :func:`check_read` refuses them."""
SOUNDS = re.compile(
    r"rope|rotary|(^|_)(nope|xpos|alibi|rel|relative|pos|positions?|positional|windows?|sliding|swa|yarn|ntk|logn|"
    r"theta|layer_types?|block_types?|attention_types?|attn_types?|bidirectional|attention_chunk|attn_chunk|"
    r"attn_temperature|attention_temperature|log_scaling|long_context|length_extrapolation|local_(radius|attention)|"
    r"(attn|attention|local|global|hybrid|full|sliding|swa)_(layers?_)?(idxs?|ids|indices|pattern|interval)|"
    r"override_pattern|hybrid_layer_pattern|(attn|attention)_(layer_(indices|offset|period)|every\w*|layers)|"
    r"full_attention_interval|cross_attention_layers|block_?sparse|clamp_len|attention_every)(_|$)"
)


def check_keys(values: Values) -> None:
    """Refuse keys that sound like position and are read in no family, before any other error.

    Raises:
        HeadwayError: on such keys, by name.
    """
    _refuse(key for key in _sounding(values) if key not in READ and key not in HARMLESS)


def check_read(values: Values, *, masks: bool, rotates: bool) -> None:
    """Refuse keys that sound like position and were not read.

    Args:
        values: a configuration that was read.
        masks: whether masks were read too.
        rotates: false for a model of a known family that does not rotate: it ignores keys about rotation.

    Raises:
        HeadwayError: on such keys, by name.
    """
    harmless = HARMLESS | LENGTHS
    if not masks:
        harmless |= MASKS
    if any(key in values for key in LISTS) or not values.flag("use_sliding_window", default=True):
        harmless |= PATTERNS
    if not rotates:
        harmless |= ROTATIONS
    if values.entries.get("sliding_window_size") == values.get("sliding_window"):
        harmless |= {"sliding_window_size"}  # redundant, as in Gemma 2's files
    _refuse(key for key in _sounding(values) if key not in values.asked and key not in harmless)


def _sounding(values: Values) -> list[str]:
    return [key for key, value in values.entries.items() if SOUNDS.search(key) and value not in (None, False)]


def _refuse(keys: Iterable[str]) -> None:
    if unknown := sorted(keys):
        raise HeadwayError(
            f"expected keys about position that are known, got {', '.join(unknown[:8])}: if position does not "
            f"depend on it, take it out of the configuration; else build the method yourself, see `headway methods`"
        )
