// What Python passes to rotate.cpp.
#pragma once

#include <cstdint>

namespace headway::rotate {

// One call; library.py parses these lines to pass the same fields. Strides count elements, those of the last dimension
// are 1; T is float, or double for double inputs.
struct Call {
  int64_t batch, heads, tokens, dim, pairs, interleaved;
  double sign;    // -1 turns back
  const void* x;  // (B, H, N, D); the first 2 pairs of D are turned
  int64_t x_batch, x_head, x_row;
  const void *cos, *sin;  // (B, H, N, P) T
  int64_t cos_batch, cos_head, cos_row, sin_batch, sin_head, sin_row;
  void* out;  // (B, H, N, D)
  int64_t out_batch, out_head, out_row;
  // backward of the waves, where x is the gradient
  const void* given;  // what was turned, (B, H, N, D), or null
  int64_t given_batch, given_head, given_row;
  void *d_cos, *d_sin;  // (B, H, N, P) T, contiguous
};

}  // namespace headway::rotate
