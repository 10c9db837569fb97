// Softmax of one row of a tile of scores, and its derivative.
#pragma once

#include "tile.h"

namespace headway {

// One row of a tile: scores to exp(score - most). Updates `most`, the row's greatest score so far, and `sum`; earlier
// results of the row must be multiplied by `shrink`.
template <typename T>
inline void soften(T* row, int64_t first, int64_t wide, Added<T> added, T& most, T& sum, T& shrink) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const V all(added.all);
  V best(-std::numeric_limits<T>::infinity());
  if (added.each == nullptr) {
    for (int64_t j = first; j < wide; j += lanes) best = at::vec::clamp_min(V::loadu(row + j), best);
    best = best + all;
  } else {
    for (int64_t j = first; j < wide; j += lanes) {
      const V x = V::loadu(row + j) + (V::loadu(added.each + j) + all);
      x.store(row + j);
      best = at::vec::clamp_min(x, best);
    }
  }
  const T now = std::max(most, max_of(best));
  if (now == -std::numeric_limits<T>::infinity()) {
    // fully masked, or only NaN, which comparisons miss: NaN must show in the result
    for (int64_t j = first; j < wide; ++j)
      if (std::isnan(row[j])) sum = row[j];
    std::fill(row + first, row + wide, T(0));
    shrink = T(1);
    return;
  }
  shrink = most == now ? T(1) : std::exp(most - now);
  most = now;
  const V shift(added.each == nullptr ? now - added.all : now);
  V total(T(0));
  for (int64_t j = first; j < wide; j += lanes) {
    const V p = exp_negative(V::loadu(row + j) - shift);
    p.store(row + j);
    total = total + p;
  }
  sum = sum * shrink + sum_of(total);
}

// What backward needs per query: exp(score - most) · inverse is a weight, and `mean` is the mean of the gradients of
// its weights. A log-sum-exp would be one value instead of two, but eps · |log-sum-exp| less exact.
template <typename T>
struct Query {
  T most, inverse, mean;
};

// One row of a tile: scores to weights, and their gradients to those of the scores. Returns the sum of the latter.
// If the row is `whole`, all its keys in this tile, its mean is computed from the same values it is subtracted from, so
// that rounding errors cancel.
template <typename T>
inline T differentiate(
    T* weight, T* gradient, int64_t first, int64_t wide, Added<T> added, Query<T> query, bool whole) {
  using V = Vectorized<T>;
  constexpr int64_t lanes = LANES<T>;
  const V all(added.all), shift(added.each == nullptr ? query.most - added.all : query.most), inverse(query.inverse);
  const auto weigh = [&](int64_t j) {
    V x = V::loadu(weight + j);
    if (added.each != nullptr) x = x + (V::loadu(added.each + j) + all);
    const V p = exp_negative(x - shift) * inverse;
    p.store(weight + j);
    return p;
  };
  V total(T(0));
  if (whole) {
    V mean(T(0));
    for (int64_t j = first; j < wide; j += lanes) mean = at::vec::fmadd(weigh(j), V::loadu(gradient + j), mean);
    mean = V(sum_of(mean));
    for (int64_t j = first; j < wide; j += lanes) {
      const V g = V::loadu(weight + j) * (V::loadu(gradient + j) - mean);
      g.store(gradient + j);
      total = total + g;
    }
  } else {
    const V mean(query.mean);
    for (int64_t j = first; j < wide; j += lanes) {
      const V g = weigh(j) * (V::loadu(gradient + j) - mean);
      g.store(gradient + j);
      total = total + g;
    }
  }
  return sum_of(total);
}

}  // namespace headway
