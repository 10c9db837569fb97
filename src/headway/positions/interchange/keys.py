"""Which keys of a configuration speak of position: one that does and that nothing here reads is refused by its name."""

from __future__ import annotations

import re

from headway.positions.interchange.values import Values, names
from headway.shapes import HeadwayError

READ = frozenset(
    names(
        "alibi attention_chunk_size attention_layers attention_types attention_window_size attn_config "
        "prefix_dense_sliding_window_pattern "
        "attn_layer_offset attn_layer_period attn_scale attn_temperature_tuning clamp_len floor_scale "
        "global_attn_every_n_layers global_rope_theta layer_rope_theta layer_types layers_block_type "
        "learned_pos_emb local_attention local_rope_theta max_position_embeddings max_relative_positions "
        "max_window_layers n_positions no_rope_layer_interval no_rope_layers original_max_position_embeddings "
        "partial_rotary_factor pos_att_type position_buckets position_embedding_type position_embeddings_type "
        "relative_attention relative_attention_max_distance relative_attention_num_buckets rope_interleave "
        "rope_local_base_freq rope_parameters rope_pct rope_scaling rope_theta rotary_base rotary_dim "
        "rotary_emb_base rotary_emb_fraction rotary_emb_interleaved rotary_embedding_base rotary_pct "
        "sinusoidal_pos_embds sliding_window sliding_window_pattern use_bidirectional_attention "
        "use_sliding_window window_size rotary_value log_scaling_n_floor log_scaling_alpha d_rel rel_extent "
        "sliding_window_size local_layer_ids attn_type encoder_attention_type local_radius qk_rope_head_dim "
        "use_mem_rope pretrained_window_sizes use_absolute_embeddings position_biased_input swa_rope_theta"
    )
)
"""Keys that are read, some for certain families only."""
HARMLESS = frozenset(
    names(
        "_sliding_window_pattern mlp_layer_types mtp_layer_types mtp_mlp_layer_types mtp_layers_block_type "
        "num_sliding_attention_heads swa_head_dim swa_num_attention_heads swa_num_key_value_heads "
        "qk_nope_head_dim keep_window_size norm_rel_ebd position_id_per_seconds attention_type layer_type "
        "max_2d_position_embeddings dropout_positions positional_dropout num_conv_pos_embeddings "
        "num_conv_pos_embedding_groups max_trained_positions max_source_positions max_target_positions"
    )
)
"""Keys that sound like position and change nothing about the tokens' own."""
SOUNDS = re.compile(
    r"rope|rotary|(^|_)(nope|xpos|alibi|rel|relative|pos|positions?|positional|windows?|sliding|swa|yarn|ntk|logn|"
    r"theta|layer_types?|block_types?|attention_types?|attn_types?|bidirectional|attention_chunk|attn_chunk|"
    r"attn_temperature|attention_temperature|log_scaling|long_context|length_extrapolation)(_|$)"
)


def check_keys(values: Values) -> None:
    """Refuse what sounds like position and is not read.

    Raises:
        HeadwayError: on such keys, by name.
    """
    unknown = [
        key
        for key, value in values.entries.items()
        if SOUNDS.search(key) and value not in (None, False) and key not in READ and key not in HARMLESS
    ]
    if unknown:
        raise HeadwayError(
            f"expected keys about position that are known, got {', '.join(sorted(unknown)[:8])}: if position does not "
            f"depend on it, take it out of the configuration; else build the method yourself, see `headway methods`"
        )
