// Pairs of a vector's entries, turned by angles:
//
//     (a, b) -> (a cos - sign b sin, b cos + sign a sin)
//
// One pass over memory, where the formula in torch takes about ten. The rest of a vector is copied. And cos and sin of
// many angles, in one pass.
#include "rotate.h"

#include "tasks.h"
#include "waves.h"

namespace headway::rotate {

// The gradients of cos and sin from those of what was turned.
template <typename T, typename In, bool INTERLEAVED>
void differentiate(
    const Call& c, const In* __restrict grad, const In* __restrict given, T* __restrict d_cos, T* __restrict d_sin) {
  for (int64_t p = 0; p < c.pairs; ++p) {
    const int64_t first = first_of<INTERLEAVED>(p), second = second_of<INTERLEAVED>(p, c.pairs);
    const T a = T(given[first]), b = T(given[second]), g = T(grad[first]), h = T(grad[second]);
    d_cos[p] = a * g + b * h;
    d_sin[p] = a * h - b * g;
  }
}

template <typename T, typename In, bool INTERLEAVED>
void run(const Call& c) {
  constexpr int64_t grain = 1 << 14;  // entries worth a thread
  const int64_t rows = c.batch * c.tokens;
  at::parallel_for(
      0, rows, std::max<int64_t>(1, grain / std::max<int64_t>(1, c.heads * c.dim)), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t b = row / c.tokens, n = row % c.tokens;
          for (int64_t h = 0; h < c.heads; ++h) {
            const In* x = static_cast<const In*>(c.x) + b * c.x_batch + h * c.x_head + n * c.x_row;
            turn<T, In, INTERLEAVED>(
                c, x, static_cast<const T*>(c.cos) + b * c.cos_batch + h * c.cos_head + n * c.cos_row,
                static_cast<const T*>(c.sin) + b * c.sin_batch + h * c.sin_head + n * c.sin_row,
                static_cast<In*>(c.out) + b * c.out_batch + h * c.out_head + n * c.out_row);
            if (c.given == nullptr) continue;
            const int64_t at = ((b * c.heads + h) * c.tokens + n) * c.pairs;
            differentiate<T, In, INTERLEAVED>(
                c, x, static_cast<const In*>(c.given) + b * c.given_batch + h * c.given_head + n * c.given_row,
                static_cast<T*>(c.d_cos) + at, static_cast<T*>(c.d_sin) + at);
          }
        }
      });
}

}  // namespace headway::rotate

extern "C" int headway_rotate(const headway::rotate::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() {
    call->interleaved ? headway::rotate::run<T, In, true>(*call) : headway::rotate::run<T, In, false>(*call);
  });
}

extern "C" int headway_waves(const headway::waves::Call* call, int, char*) {
  constexpr int64_t grain = 1 << 12;  // angles worth a thread
  const double* angles = static_cast<const double*>(call->angles);
  float *cos = static_cast<float*>(call->cos), *sin = static_cast<float*>(call->sin);
  at::parallel_for(0, call->count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += grain)
      headway::waves::waves(angles + i, cos + i, sin + i, std::min(grain, end - i));
  });
  return 0;
}

// Let Python check that both sides have the same layouts.
extern "C" int64_t rotate_size() { return sizeof(headway::rotate::Call); }
extern "C" int64_t waves_size() { return sizeof(headway::waves::Call); }
