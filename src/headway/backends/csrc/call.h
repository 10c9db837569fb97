// The arguments of softmax attention.
#pragma once

#include <cstdint>

namespace headway {

// One call; library.py parses these lines to pass the same fields. Strides count elements; T is float, or double for
// double inputs.
struct Call {
  int64_t batch, heads, kv_heads, queries, keys, dim, dim_v;
  const void *q, *k, *v;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
  const int64_t *q_pos, *k_pos, *q_docs, *k_docs;  // documents may be null
  int64_t q_pos_batch, k_pos_batch, q_docs_batch, k_docs_batch;
  int64_t past, future;
  const int64_t *mask, *mask_q, *mask_k;  // what else hides pairs, see mask.h, or null
  int64_t mask_steps, mask_q_leaf, mask_q_batch, mask_k_leaf, mask_k_batch;
  const void* mask_table;  // (B, H, rows, columns) bytes, contiguous over columns, or null
  int64_t mask_table_batch, mask_table_head, mask_table_row;
  const void* per_key;  // (B, H, K) T, or null
  int64_t per_key_batch, per_key_head;
  const void *table, *tails;  // (H, W) and (H, 2) T, or null; contiguous
  int64_t width, left, row;   // row: tokens are those of an image with rows this long, or 0; see Terms::each_line
  const void* rows;           // (B, H, Q, W') T, or null
  int64_t rows_batch, rows_head, rows_row, rows_width, rows_left;
  const void *rows_x, *rows_vectors;  // instead: (B, H, Q, X) T and (H, E, X) T, whose products the rows are, or null
  const int64_t* rows_index;          // (W') of [0, E), or null
  int64_t rows_x_batch, rows_x_head, rows_x_row, rows_dim, rows_vectors_head, rows_entries;
  const void* cols;  // (B, H, K, W'') T, or null; the following as for rows
  int64_t cols_batch, cols_head, cols_row, cols_width, cols_left;
  const void *cols_x, *cols_vectors;
  const int64_t* cols_index;
  int64_t cols_x_batch, cols_x_head, cols_x_row, cols_dim, cols_vectors_head, cols_entries;
  const void* values_vectors;  // (H or 1, E, D_v) T, added to values by distance, or null
  int64_t values_vectors_head, values_width, values_left, values_entries, values_dim;
  const void *q_slopes, *k_slopes;  // (B, H, Q) and (B, H, K) T, or null
  int64_t q_slopes_batch, q_slopes_head, k_slopes_batch, k_slopes_head;
  // by distance, base[s] + slope[s] x, x = level[distance] rate[query], in piece s of x, or null
  const void *curve_level, *curve_rate;  // (W) and (B, Q) T
  const void *curve_base, *curve_slope;  // (H, K + 1) T
  const int64_t* curve_breaks;           // (B, Q, K): the distances at which pieces 1 ... K begin
  int64_t curve_width, curve_knots, curve_rate_batch, curve_breaks_batch;
  const void* pairs;  // (B, H, Q, K) of one of by_kind's types, contiguous over keys, or null
  int64_t pairs_batch, pairs_head, pairs_row, pairs_kind;
  const void* rates;              // (D,) T, how fast each dimension of q and k decays with distance, or null
  const void *q_decay, *k_decay;  // doubles (B, H, Q, D) and (B, H, K, D), P of each, see decay.h, or null; H_kv is H
  int64_t q_decay_batch, q_decay_head, q_decay_row, k_decay_batch, k_decay_head, k_decay_row;
  double bound;           // of the product of any dimension of a query and a key, times the scale
  double scale, softcap;  // content is scale q k, or softcap tanh(scale q k / softcap) if that is not 0
  const void* sinks;      // (H) T, the score of one more key without a value, or null
  double dropout;         // share of the weights set to 0
  const int64_t* seed;    // decides which; null without dropout
  int64_t skip;           // whether tiles of negligible weight are skipped
  int64_t decoding;       // no backward will follow
  void* out;              // (B, H, Q, D_v)
  int64_t out_batch, out_head, out_row;
  void* sums;  // (B, H, Q, 2) T, contiguous: a row's greatest score, and 1 / its sum of exp(score - greatest), or 0, 0
  // backward
  int64_t some_keys;  // whether these are some of the keys that a row sees, and its sums and output are of all
  const void* grad;   // (B, H, Q, D_v)
  int64_t grad_batch, grad_head, grad_row;
  int64_t splits;  // number of tasks that share the keys of a head; each has its own d_q, d_table, d_rows …
  void* d_q;       // (S, B, H, Q, wide D) T
  int64_t d_q_split, d_q_batch, d_q_head, d_q_row;
  void *d_k, *d_v;  // (B, H_kv, K, D), (B, H_kv, K, D_v)
  int64_t d_k_batch, d_k_head, d_k_row, d_v_batch, d_v_head, d_v_row;
  double* d_per_key;                         // (B, H, K), or null
  double *d_table, *d_tails;                 // (S, B, H, W) and (S, B, H, 2), or null
  void* d_rows;                              // (S, B, H, Q, W') T, or null
  void *d_rows_x, *d_rows_vectors;           // (S, B, H, Q, X) and (S, B, H, E, X) T, or null
  void *d_cols, *d_cols_x, *d_cols_vectors;  // (B, H, K, W''), (1, B, H, K, X) and (S, B, H, E, X) T, or null
  const void* values_x;                      // the gradient of the output again, (B, H, Q, D_v) T
  int64_t values_x_batch, values_x_head, values_x_row;
  void* d_values_vectors;                // (S, B, H, E, D_v) T, or null
  double *d_curve_level, *d_curve_rate;  // (S, B, H, W) and (S, B, H, Q), or null
  double *d_q_decay, *d_k_decay;         // (S, B, H, Q, D) and (B, H, K, D), zeros, or null
  double *d_curve_base, *d_curve_slope;  // (S, B, H, K + 1), or null
  void *d_q_slopes, *d_k_slopes;         // (S, B, H, Q) and (B, H, K) T, or null
  void* d_pairs;                         // T, contiguous, as broadcast as the pairs, or null
  int64_t* tiles;                        // {computed, skipped}, added to
};

}  // namespace headway
