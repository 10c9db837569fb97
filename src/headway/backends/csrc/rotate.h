// What Python passes to rotate.cpp.
#pragma once

#include <algorithm>
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

// The pairs of a row: entries p and P + p, or 2p and 2p + 1.
template <bool INTERLEAVED>
inline int64_t first_of(int64_t p) {
  return INTERLEAVED ? 2 * p : p;
}
template <bool INTERLEAVED>
inline int64_t second_of(int64_t p, int64_t pairs) {
  return INTERLEAVED ? 2 * p + 1 : pairs + p;
}

template <typename T, typename In, bool INTERLEAVED>
void turn(const Call& c, const In* __restrict x, const T* __restrict cos, const T* __restrict sin, In* __restrict out) {
  const T sign = T(c.sign);
  for (int64_t p = 0; p < c.pairs; ++p) {
    const int64_t first = first_of<INTERLEAVED>(p), second = second_of<INTERLEAVED>(p, c.pairs);
    const T a = T(x[first]), b = T(x[second]), s = sign * sin[p];
    out[first] = static_cast<In>(a * cos[p] - b * s);
    out[second] = static_cast<In>(b * cos[p] + a * s);
  }
  std::copy(x + 2 * c.pairs, x + c.dim, out + 2 * c.pairs);
}

}  // namespace headway::rotate
