// The gradient of a layer's matrix, the sum over all tokens of grad_n x_nᵀ.
//
// A product of few rows and columns over a long sum, for which libraries copy both operands the other way round. Here
// both are read as they lie, and the sum is taken in parts of parts, whose errors do not add up.
#include "weights.h"

#include "tasks.h"

namespace headway::weights {

constexpr int64_t SOME = 256;   // tokens that are packed at once
constexpr int64_t MANY = 2048;  // tokens of a part of the sum
constexpr int64_t TALL = 96;    // rows of a task's piece of the matrix, or fewer where threads would be idle

template <typename T>
void run(const Call& c) {
  constexpr int64_t wide = PANEL<T>;
  const int64_t panels = (c.columns + wide - 1) / wide, threads = at::get_num_threads();
  int64_t tall = TALL;
  while (tall > 2 * ROWS && (c.rows + tall - 1) / tall * panels < 2 * threads) tall /= 2;
  const int64_t strips = (c.rows + tall - 1) / tall;
  const size_t bytes = sizeof(T) * (SOME * (tall + wide) + 2 * tall * wide) + 64 * 4;
  headway::run(strips * panels, bytes, [&](int64_t task, Scratch& room) {
    const int64_t row = task % strips * tall, column = task / strips * wide;
    const int64_t height = std::min(tall, c.rows - row), width = std::min(wide, c.columns - column);
    T *grad = room.take<T>(SOME * tall), *x = room.take<T>(SOME * wide), *part = room.take<T>(tall * wide),
      *sum = room.take<T>(tall * wide);
    std::fill_n(sum, tall * wide, T(0));
    for (int64_t many = 0; many < c.tokens; many += MANY) {
      const int64_t end = std::min(c.tokens, many + MANY);
      for (int64_t n = many; n < end; n += SOME) {
        const int64_t some = std::min(SOME, end - n);
        pack<T, T>(grad, tall, static_cast<const T*>(c.grad) + n * c.grad_row + row, c.grad_row, some, height, T(1));
        pack<T, T>(x, wide, static_cast<const T*>(c.x) + n * c.x_row + column, c.x_row, some, width, T(1));
        product<T>(height, round_up(width, LANES<T>), some, grad, 1, tall, x, wide, wide, part, wide, n > many);
      }
      for (int64_t i = 0; i < height * wide; ++i) sum[i] += part[i];
    }
    for (int64_t r = 0; r < height; ++r)
      std::copy_n(sum + r * wide, width, static_cast<T*>(c.out) + (row + r) * c.columns + column);
  });
}

}  // namespace headway::weights

extern "C" int headway_weights(const headway::weights::Call* call, int kind, char* message) {
  return headway::by_kind(kind, message, [&]<typename T, typename In>() {
    if constexpr (std::is_same_v<T, In>) headway::weights::run<T>(*call);
  });
}

// Lets Python check that both sides have the same layout.
extern "C" int64_t weights_size() { return sizeof(headway::weights::Call); }
