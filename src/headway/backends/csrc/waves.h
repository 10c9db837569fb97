// What Python passes to the waves of rotate.cpp.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace headway::waves {

// One call; library.py parses these lines to pass the same fields. All is contiguous.
struct Call {
  int64_t count;
  const void* angles;  // double
  void *cos, *sin;     // float
};

constexpr double LARGE = 562949953421312.0;  // 2^49: beyond it quarter turns are not counted here

// Both waves of a small angle, rounded once: quarter turns are taken off in extended precision, and what is left, in
// [-pi/4, pi/4], goes through a Taylor series of 16 digits. Without branches, so that compilers vectorise it.
inline void small(double angle, float& cos, float& sin) {
  constexpr double shift = 6755399441055744.0;  // 1.5 * 2^52: a sum with it is rounded to integers, in its last bits
  constexpr double quarter = 1.5707963267948966, rest = 6.123233995736766e-17;  // of a turn, and what it lacks
  const double shifted = std::fma(angle, 0.6366197723675814, shift), turns = shifted - shift;
  const double x = std::fma(-turns, rest, std::fma(-turns, quarter, angle)), y = x * x;
  double s = -1.0 / 1307674368000.0, c = -1.0 / 87178291200.0;
  s = std::fma(s, y, 1.0 / 6227020800.0), c = std::fma(c, y, 1.0 / 479001600.0);
  s = std::fma(s, y, -1.0 / 39916800.0), c = std::fma(c, y, -1.0 / 3628800.0);
  s = std::fma(s, y, 1.0 / 362880.0), c = std::fma(c, y, 1.0 / 40320.0);
  s = std::fma(s, y, -1.0 / 5040.0), c = std::fma(c, y, -1.0 / 720.0);
  s = std::fma(s, y, 1.0 / 120.0), c = std::fma(c, y, 1.0 / 24.0);
  s = std::fma(s, y, -1.0 / 6.0), c = std::fma(c, y, -0.5);
  s = std::fma(s * y, x, x), c = std::fma(c, y, 1.0);
  // an odd number of quarter turns swaps them, and signs follow from its last two bits
  const uint64_t bits = std::bit_cast<uint64_t>(shifted), odd = -(bits & 1);
  const uint64_t of_s = std::bit_cast<uint64_t>(s), of_c = std::bit_cast<uint64_t>(c), differ = (of_s ^ of_c) & odd;
  sin = static_cast<float>(std::bit_cast<double>((of_s ^ differ) ^ ((bits & 2) << 62)));
  cos = static_cast<float>(std::bit_cast<double>((of_c ^ differ) ^ (((bits + 1) & 2) << 62)));
}

inline void waves(const double* __restrict angles, float* __restrict cos, float* __restrict sin, int64_t count) {
  int64_t large = 0;
  for (int64_t i = 0; i < count; ++i) large += !(std::abs(angles[i]) < LARGE);  // so is NaN
  if (large == 0) {
    for (int64_t i = 0; i < count; ++i) small(angles[i], cos[i], sin[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
  }
}

}  // namespace headway::waves
