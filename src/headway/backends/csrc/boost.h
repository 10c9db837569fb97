// Products of queries and keys whose dimensions decay with distance, tile by tile:
//
//     score(m, n) = sum_d q_d k_d exp(-rate_d |m - n|)
//
// Between queries m and keys n on either side of an anchor a, exp(-rate |m - n|) = exp(-rate |m - a|) exp(-rate |a -
// n|). Both factors are at most 1, and the tile is an ordinary product of scaled queries and scaled keys. A tile that
// contains the diagonal is halved until what is left of it is small, and computed pair by pair.
#pragma once

#include "tile.h"

namespace headway {

// sum_d q_d factor_d k_d over `wide` values.
template <typename T>
T weighted_product(const T* q, const T* factor, const T* k, int64_t wide) {
  using V = Vectorized<T>;
  V sum(T(0));
  for (int64_t d = 0; d < wide; d += LANES<T>)
    sum = at::vec::fmadd(V::loadu(q + d) * V::loadu(factor + d), V::loadu(k + d), sum);
  return sum_of(sum);
}

template <typename T>
class Boosts {
  using V = Vectorized<T>;
  static constexpr int64_t LEAF = 24;  // rows whose pairs beside the diagonal are computed one by one
  static constexpr int64_t NEAR = 64;  // distances whose factors are tabulated
  enum Side { PAST, FUTURE, BOTH };    // where the keys are, seen from the queries

 public:
  static size_t bytes(const Call& call, int64_t rows, int64_t columns) {
    if (call.rates == nullptr) return 0;
    const int64_t wide = round_up(call.dim, LANES<T>);
    return sizeof(T) * wide * (NEAR + 2 + 2 * rows + 9 * (columns + PANEL<T>)) + 64 * 16;
  }

  Boosts(const Call& call, int64_t b, Scratch& room, int64_t rows, int64_t columns)
      : on(call.rates != nullptr),
        call_(call),
        b_(b),
        wide_(round_up(call.dim, LANES<T>)),
        q_pos_(call.q_pos + b * call.q_pos_batch),
        k_pos_(call.k_pos + b * call.k_pos_batch) {
    if (!on) return;
    rates_ = room.take<T>(wide_);
    pack<T, T>(rates_, wide_, static_cast<const T*>(call.rates), 0, 1, call.dim, T(1));
    own_ = room.take<T>(wide_);
    table_ = room.take<T>(NEAR * wide_);
    for (int64_t distance = 0; distance < NEAR; ++distance) exponentials(distance, wide_, table_ + distance * wide_);
    q_ = room.take<T>(rows * wide_);
    d_q_ = room.take<T>(rows * wide_);
    const int64_t all = (columns + PANEL<T>)*wide_;
    for (Far& far : far_) far = {room.take<T>(all), room.take<T>(all), room.take<T>(all), false, false};
    near_ = {room.take<T>(all), room.take<T>(all), room.take<T>(all), false, false};
    // what is left out changes no score, and no gradient of a query or key, by more than 1/256 of a rounding
    const double epsilon = std::numeric_limits<T>::epsilon();
    least_ = std::isfinite(call.bound)
                 ? std::log(epsilon / 512 / double(call.dim)) - std::log(std::max(1.0, call.bound))
                 : -std::numeric_limits<double>::infinity();
  }

  // Go to a block of keys, `k` with rows of wide_ values.
  void enter(const T* k) {
    k_ = k;
    for (Far& far : far_) far.ready = far.begun = false;
  }

  // The scores of a tile.
  void scores(const Tile& tile, const T* q, int64_t q_row, T* to, int64_t to_row) {
    each_piece(tile, [&](Side side, int64_t from, int64_t end, int64_t first, int64_t wide, bool whole) {
      T* out = to + from * to_row + first;
      if (side == BOTH) {
        for (int64_t i = from; i < end; ++i)
          for (int64_t j = first; j < wide; ++j)
            to[i * to_row + j] = visible(call_, b_, tile, i, j) ? pair(tile, i, j, q + i * q_row) : T(0);
        return;
      }
      const int64_t kept = whole ? kept_at(gap(tile)) : call_.dim;
      if (kept == 0 || hidden(tile, side, from, end, first, wide)) {
        for (int64_t i = from; i < end; ++i, out += to_row) std::fill(out, out + wide - first, T(0));
        return;
      }
      const int64_t anchor = anchor_of(tile, side, from, end, whole);
      Far& far = whole ? far_[side] : near_;
      const int64_t skipped = whole ? 0 : first;
      if (!whole || !far.ready) scale_keys(tile, skipped, whole ? tile.k->size() : wide, anchor, far, true);
      scale_queries(tile, from, end, anchor, kept, q, q_row);
      product<T>(
          end - from, wide - first, kept, q_, wide_, 1, far.panel + (first - skipped) * call_.dim, PANEL<T>,
          call_.dim * PANEL<T>, out, to_row, false);
    });
  }

  // Add the gradients of queries and keys, given those of a tile's scores.
  void gradients(
      const Tile& tile, const T* gradient, int64_t row, const T* q, int64_t q_row, T* d_q, int64_t d_q_row, T* d_k) {
    each_piece(tile, [&](Side side, int64_t from, int64_t end, int64_t first, int64_t wide, bool whole) {
      const int64_t last = std::min(wide, tile.last);
      if (side == BOTH) {
        for (int64_t i = from; i < end; ++i)
          for (int64_t j = first; j < last; ++j)
            if (visible(call_, b_, tile, i, j))
              pair_gradients(tile, i, j, gradient[i * row + j], q + i * q_row, d_q + i * d_q_row, d_k + j * wide_);
        return;
      }
      const int64_t kept = round_up(whole ? kept_at(gap(tile)) : call_.dim, LANES<T>);
      if (kept == 0 || hidden(tile, side, from, end, first, wide)) return;
      const int64_t anchor = anchor_of(tile, side, from, end, whole);
      Far& far = whole ? far_[side] : near_;
      const int64_t skipped = whole ? 0 : first;
      if (!whole || !far.ready) scale_keys(tile, skipped, whole ? tile.k->size() : wide, anchor, far, false);
      if (whole && !far.begun) std::fill(far.d, far.d + tile.k->size() * wide_, T(0));
      far.begun = true;
      scale_queries(tile, from, end, anchor, kept, q, q_row);
      const T* own = gradient + from * row + first;
      const int64_t offset = (first - skipped) * wide_;
      product<T>(last - first, kept, end - from, own, 1, row, q_, wide_, PANEL<T>, far.d + offset, wide_, whole);
      if (!whole)
        for (int64_t j = first; j < last; ++j)
          add_scaled(d_k + j * wide_, far.d + (j - first) * wide_, key(tile, j) - anchor, kept);
      product<T>(end - from, kept, last - first, own, row, 1, far.rows + offset, wide_, PANEL<T>, d_q_, wide_, false);
      for (int64_t i = from; i < end; ++i)
        if (query(tile, i) >= 0)
          add_scaled(d_q + i * d_q_row, d_q_ + (i - from) * wide_, query(tile, i) - anchor, kept);
    });
  }

  // Leave the block of keys: add the gradients gathered from whole tiles.
  void leave(const Span& keys, T* d_k) {
    for (const Side side : {PAST, FUTURE}) {
      if (!far_[side].begun) continue;
      const int64_t anchor = side == PAST ? keys.high : keys.low;
      for (int64_t j = 0; j < keys.size(); ++j)
        if (k_pos_[keys.begin + j] >= 0)
          add_scaled(d_k + j * wide_, far_[side].d + j * wide_, k_pos_[keys.begin + j] - anchor, wide_);
    }
  }

  const bool on;

 private:
  // Scaled keys as rows and as the operand of a product, and their gradients.
  struct Far {
    T *rows, *panel, *d;
    bool ready, begun;
  };

  int64_t query(const Tile& tile, int64_t i) const { return q_pos_[tile.q->begin + i]; }
  int64_t key(const Tile& tile, int64_t j) const { return k_pos_[tile.k->begin + j]; }
  // The least distance between a query and a key of a tile beside the diagonal.
  static int64_t gap(const Tile& tile) { return std::max(tile.q->low - tile.k->high, tile.k->low - tile.q->high); }

  // Divide a tile into pieces whose keys all lie on one side of their queries, and small ones beside the diagonal.
  template <typename Work>
  void each_piece(const Tile& tile, const Work& work) const {
    const int64_t rows = tile.rows();
    if (tile.k->high <= tile.q->low) return work(PAST, 0, rows, tile.first, tile.wide, true);
    if (tile.k->low >= tile.q->high) return work(FUTURE, 0, rows, tile.first, tile.wide, true);
    if (!tile.regular) return work(BOTH, 0, rows, tile.first, tile.wide, false);
    divide(tile, 0, rows, tile.first, tile.wide, work);
  }

  template <typename Work>
  void divide(const Tile& tile, int64_t from, int64_t end, int64_t first, int64_t wide, const Work& work) const {
    const auto clamp = [](int64_t x, int64_t low, int64_t high) { return std::min(std::max(x, low), high); };
    // the column of a row's own position is row - distance
    const int64_t past = clamp(from - tile.distance + 1, first, wide) / LANES<T> * LANES<T>;
    const int64_t future = round_up(clamp(end - tile.distance, past, wide), LANES<T>);
    if (first < past) work(PAST, from, end, first, past, false);
    if (future < wide) work(FUTURE, from, end, future, wide, false);
    if (past >= future) return;
    if (end - from <= LEAF) return work(BOTH, from, end, past, future, false);
    const int64_t middle = (from + end) / 2;
    divide(tile, from, middle, past, future, work);
    divide(tile, middle, end, past, future, work);
  }

  // Whether no query of a piece of a regular tile sees a key of it.
  bool hidden(const Tile& tile, Side side, int64_t from, int64_t end, int64_t first, int64_t wide) const {
    if (!tile.regular) return false;
    return side == PAST ? tile.distance + wide - 1 - from < -call_.past
                        : tile.distance + first - (end - 1) > call_.future;
  }

  int64_t anchor_of(const Tile& tile, Side side, int64_t from, int64_t end, bool whole) const {
    if (whole) return side == PAST ? tile.k->high : tile.k->low;
    return side == PAST ? query(tile, from) : query(tile, end - 1);
  }

  // The dimensions that count at this distance and beyond.
  int64_t kept_at(int64_t distance) const {
    int64_t count = call_.dim;
    while (count > 0 && -double(rates_[count - 1]) * double(distance) < least_) --count;
    return count;
  }

  void exponentials(int64_t distance, int64_t count, T* to) const {
    const V minus{-T(distance)};
    for (int64_t d = 0; d < count; d += LANES<T>) exp_negative(V::loadu(rates_ + d) * minus).store(to + d);
  }
  // exp(-rate · |distance|) of at least the first `count` dimensions, until the next call.
  const T* factors(int64_t distance, int64_t count) const {
    distance = std::abs(distance);
    if (distance < NEAR) return table_ + distance * wide_;
    exponentials(distance, round_up(count, LANES<T>), own_);
    return own_;
  }

  void scale_row(T* to, const T* from, int64_t position, int64_t anchor, int64_t count) const {
    if (position < 0) {
      std::fill(to, to + wide_, T(0));
      return;
    }
    const T* factor = factors(position - anchor, count);
    for (int64_t d = 0; d < count; d += LANES<T>) (V::loadu(from + d) * V::loadu(factor + d)).store(to + d);
  }
  void add_scaled(T* to, const T* from, int64_t distance, int64_t count) const {
    const T* factor = factors(distance, count);
    for (int64_t d = 0; d < count; d += LANES<T>)
      at::vec::fmadd(V::loadu(from + d), V::loadu(factor + d), V::loadu(to + d)).store(to + d);
  }

  void scale_queries(
      const Tile& tile, int64_t from, int64_t end, int64_t anchor, int64_t count, const T* q, int64_t q_row) const {
    for (int64_t i = from; i < end; ++i)
      scale_row(q_ + (i - from) * wide_, q + i * q_row, query(tile, i), anchor, count);
  }
  void scale_keys(const Tile& tile, int64_t first, int64_t end, int64_t anchor, Far& to, bool panels) const {
    const int64_t count = end - first, real = std::min(end, tile.k->size()) - first;
    for (int64_t j = 0; j < real; ++j)
      scale_row(to.rows + j * wide_, k_ + (first + j) * wide_, key(tile, first + j), anchor, wide_);
    to.ready = true;
    if (!panels) return;
    std::fill(to.rows + real * wide_, to.rows + round_up(count, PANEL<T>) * wide_, T(0));
    transpose<T>(to.panel, to.rows, wide_, count, call_.dim);
  }

  T pair(const Tile& tile, int64_t i, int64_t j, const T* q) const {
    return weighted_product(q, factors(key(tile, j) - query(tile, i), wide_), k_ + j * wide_, wide_);
  }
  void pair_gradients(const Tile& tile, int64_t i, int64_t j, T gradient, const T* q, T* d_q, T* d_k) const {
    const T *factor = factors(key(tile, j) - query(tile, i), wide_), *k = k_ + j * wide_;
    const V g(gradient);
    for (int64_t d = 0; d < wide_; d += LANES<T>) {
      const V scaled = g * V::loadu(factor + d);
      at::vec::fmadd(scaled, V::loadu(k + d), V::loadu(d_q + d)).store(d_q + d);
      at::vec::fmadd(scaled, V::loadu(q + d), V::loadu(d_k + d)).store(d_k + d);
    }
  }

  const Call& call_;
  const int64_t b_, wide_;
  const int64_t *q_pos_, *k_pos_;
  T *rates_ = nullptr, *own_ = nullptr, *table_ = nullptr, *q_ = nullptr, *d_q_ = nullptr;
  const T* k_ = nullptr;
  Far far_[2] = {}, near_ = {};
  double least_ = 0;
};

}  // namespace headway
