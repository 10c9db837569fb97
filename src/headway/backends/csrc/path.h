// What Python passes to path.cpp.
#pragma once

#include <cstdint>

namespace headway::path {

// One call; library.py parses these lines to pass the same fields. All is contiguous; T is float, or double for double
// inputs. Keys are padded to n, whole blocks of 64; D and D_v are multiples of the lanes.
struct Call {
  int64_t batch, heads, w_heads, kv_heads, queries, blocks, dim, dim_v;
  const void *q, *k, *v;         // (B, H, Q, D) T, times the scale; (B, H_w, n, D); (B, H_kv, n, D_v)
  const void *w, *beta;          // (B, H_w, n, D) and (B, H_w, n) T
  int64_t whole;                 // whether queries cross whole blocks at once: not worth it for a few
  const void* per_key;           // (B, H, n) T, or null
  const int64_t *q_pos, *k_pos;  // (B, Q), (B, n)
  const int64_t *q_docs, *k_docs;
  int64_t past, future;
  const int64_t *mask, *mask_q, *mask_k;  // what else hides pairs, see mask.h, or null
  int64_t mask_steps, mask_q_leaf, mask_q_batch, mask_k_leaf, mask_k_batch;
  const void* mask_table;  // (B, H, rows, columns) bytes, contiguous over columns, or null
  int64_t mask_table_batch, mask_table_head, mask_table_row;
  double dropout;       // share of the weights set to 0
  const int64_t* seed;  // decides which; null without dropout
  void* out;            // (B, H, Q, D_v) T
  void* sums;           // (B, H, Q, 2) T: a row's greatest score, and 1 / its sum of exp(score - greatest), or 0, 0
  // backward
  const void* grad;          // (B, H, Q, D_v) T
  int64_t splits;            // tasks that share the queries of a key head; each has its own gradients of keys
  void* d_q;                 // (B, H, Q, D) T
  void *d_k, *d_w, *d_beta;  // as above
  void* d_v;                 // S of it, zeros
  double* d_per_key;         // S of it, zeros, or null
};

}  // namespace headway::path
