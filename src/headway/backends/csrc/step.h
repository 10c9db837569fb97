// What Python passes to headway_step: one token per sequence, which joins the cached ones and attends to all of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "call.h"
#include "rotate.h"

namespace headway::step {

// One call; library.py parses these lines to pass the same fields. Strides count elements, those of the last dimension
// are 1.
struct Call {
  void* attention;        // a headway::Call of the turned queries over the cache, whose number of keys is set here
  void* rotation;         // a headway::rotate::Call of one token, whose tensors are set here, or null
  const void *q, *k, *v;  // (B, H, D), (B, H_kv, D), (B, H_kv, D_v) of the token
  int64_t q_batch, q_head, k_batch, k_head, v_batch, v_head;
  const int64_t* pos;       // its position (B or 1), or null: one after the sequence's greatest
  int64_t pos_batch, last;  // a position is at most this
  const double* rates;      // (P,) radians per position of each pair
  double amplitude;         // of cosines and sines
  void *cos, *sin;          // (P) T, room for them
  void* turned;             // (B, H, D), room for the queries
  int64_t* at;              // (B), room for the positions
  void *keys, *values;      // the cache, (B, H_kv, R, D) and (B, H_kv, R, D_v), contiguous
  int64_t* places;          // its positions (B, R)
  int64_t room, length;     // R, and how many tokens it holds; the next is written behind them
  int64_t* filled;          // the same number where it is kept, to be read and counted up, or null
  int64_t outcome;          // set: one of these
};

enum Outcome : int64_t { DONE, NOT_FINITE, REFUSED };

// The position of each sequence's token; false if one is not behind the cached ones, or beyond the last.
inline bool place(const Call& c, int64_t batch) {
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* places = c.places + b * c.room;
    int64_t next = 0;
    for (int64_t j = 0; j < c.length; ++j) next = std::max(next, places[j] + 1);
    c.at[b] = c.pos == nullptr ? next : c.pos[b * c.pos_batch];
    if (c.at[b] < next || c.at[b] > c.last) return false;
  }
  return true;
}

// Turn the token's queries and keys and write it behind the cached tokens.
template <typename T, typename In>
void append(const Call& c, const headway::Call& attention) {
  const int64_t heads = attention.heads, kv_heads = attention.kv_heads, dim = attention.dim, dim_v = attention.dim_v;
  rotate::Call* rotation = static_cast<rotate::Call*>(c.rotation);
  T *cos = static_cast<T*>(c.cos), *sin = static_cast<T*>(c.sin);
  const auto moved = [&](const In* x, In* to) {
    if (rotation == nullptr)
      std::copy(x, x + dim, to);
    else if (rotation->interleaved)
      rotate::turn<T, In, true>(*rotation, x, cos, sin, to);
    else
      rotate::turn<T, In, false>(*rotation, x, cos, sin, to);
  };
  for (int64_t b = 0; b < attention.batch; ++b) {
    for (int64_t p = 0; rotation != nullptr && p < rotation->pairs; ++p) {
      const double angle = double(c.at[b]) * c.rates[p];
      cos[p] = T(std::cos(angle)) * T(c.amplitude);
      sin[p] = T(std::sin(angle)) * T(c.amplitude);
    }
    for (int64_t h = 0; h < heads; ++h)
      moved(
          static_cast<const In*>(c.q) + b * c.q_batch + h * c.q_head,
          static_cast<In*>(c.turned) + (b * heads + h) * dim);
    for (int64_t h = 0; h < kv_heads; ++h) {
      const int64_t row = (b * kv_heads + h) * c.room + c.length;
      moved(static_cast<const In*>(c.k) + b * c.k_batch + h * c.k_head, static_cast<In*>(c.keys) + row * dim);
      const In* v = static_cast<const In*>(c.v) + b * c.v_batch + h * c.v_head;
      std::copy(v, v + dim_v, static_cast<In*>(c.values) + row * dim_v);
    }
    c.places[b * c.room + c.length] = c.at[b];
  }
}

// Whether the output has neither NaN nor infinity; its heads lie side by side.
template <typename T, typename In>
bool finite(const headway::Call& attention) {
  const In* out = static_cast<const In*>(attention.out);
  T sum = 0;
  for (int64_t n = 0; n < attention.batch * attention.heads * attention.dim_v; ++n) sum += T(out[n]) * T(0);
  return sum == T(0);
}

}  // namespace headway::step
