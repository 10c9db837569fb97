// The arguments of attention whose heads a small network mixes.
#pragma once

#include <cstdint>

namespace headway::mix {

// One call; library.py parses these lines to pass the same fields. Strides count elements; T is float, or double for
// double inputs, and q, k, v, out and their gradients are of T. Their widths are multiples of 16.
struct Call {
  int64_t batch, heads, kv_heads, queries, keys, dim, dim_v;
  const void *q, *k, *v;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
  const int64_t *q_pos, *k_pos, *q_docs, *k_docs;  // documents may be null
  const int64_t* order;  // ascending: keys are neighbours whose numbers are; null if those beside each other are
  int64_t q_pos_batch, k_pos_batch, q_docs_batch, k_docs_batch, order_batch;
  int64_t past, future;
  const int64_t *mask, *mask_q, *mask_k;  // what else hides pairs, see mask.h, or null
  int64_t mask_steps, mask_q_leaf, mask_q_batch, mask_k_leaf, mask_k_batch;
  const void* mask_table;  // (B, H, rows, columns) bytes, contiguous over columns, or null
  int64_t mask_table_batch, mask_table_head, mask_table_row;
  int64_t hidden, taps;
  const void *table, *tails;  // by distance, (H + taps F, W) and (.., 2) T: the bias B, and first B of each tap
  int64_t width, left;
  const void *first, *first_bias, *second;  // (F, H, taps), (F) and (H, F, taps) T; contiguous
  double scale;
  double dropout;       // share of the weights set to 0
  const int64_t* seed;  // decides which; null without dropout
  int64_t decoding;     // no backward will follow
  void* out;            // (B, H, Q, D_v)
  int64_t out_batch, out_head, out_row;
  void* sums;  // (B, H, Q, 2) T, contiguous: a row's greatest score, and 1 / its sum of exp(score - greatest), or 0, 0
  // backward
  const void* grad;  // (B, H, Q, D_v)
  int64_t grad_batch, grad_head, grad_row;
  int64_t splits;                             // number of tasks that share the queries of a sequence
  void *d_q, *d_k, *d_v;                      // (B, H, Q, D), (S, B, H_kv, K, D) and (S, B, H_kv, K, D_v); contiguous
  double *d_table, *d_tails;                  // (S, B, H + taps F, W) and (S, B, .., 2)
  double *d_first, *d_first_bias, *d_second;  // (S, B, F, H, taps), (S, B, F) and (S, B, H, F, taps)
};

}  // namespace headway::mix
